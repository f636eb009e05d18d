"""The gateway's boundary: what a call raises that nobody foresaw fails this call with one line, is in the log, and
costs nobody else anything. Operations in the supervisor's loop have theirs (`Supervisor.as_failure`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, NoReturn

import grpc

from vmesh.errors import said
from vmesh_services.monitor.output import one_line
from vmesh_services.monitor.streams import refuse
from vmesh_services.monitor.supervisor.supervisor import Supervisor

_LOG_SECONDS = 5.0  # in which the loop takes what is for the log; it may have ended


class Boundary(grpc.ServerInterceptor):
    """For every method of the gateway's services, whatever goes in and comes out."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def intercept_service(self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._one(handler.unary_unary), *coders)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._one(handler.stream_unary), *coders)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._many(handler.unary_stream), *coders)
        return grpc.stream_stream_rpc_method_handler(self._many(handler.stream_stream), *coders)

    def _one(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return call(request, context)
            except Exception as error:
                self._fail(error, context)

        return bounded

    def _many(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from call(request, context)
            except Exception as error:
                self._fail(error, context)

        return bounded

    def _fail(self, error: Exception, context: grpc.ServicerContext) -> NoReturn:
        refused = type(error) is Exception and not error.args  # how gRPC ends a call that is refused
        if refused or not context.is_active():
            raise error

        def again() -> NoReturn:
            raise error

        try:
            failure = self._supervisor.ask(again).exception(_LOG_SECONDS)  # in the loop, whose log it is
        except FutureTimeoutError:
            failure = error
        refuse(context, grpc.StatusCode.INTERNAL, one_line(str(said(failure) if failure is error else failure)))
