"""What a client of the gateway may say in a text: no NUL, as no path and no argument of a program can have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from vmesh_services.monitor.streams import refuse


class Texts(grpc.ServerInterceptor):
    """Refuses a call of one message with NUL in a text, by the name of the field."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        call = handler.unary_unary

        def checked(request: Message, context: grpc.ServicerContext) -> Message:
            if where := with_nul(request):
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"{where}: expected a text without NUL")
            return call(request, context)  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(checked, handler.request_deserializer, handler.response_serializer)


def with_nul(message: Message) -> str:
    """The field with NUL in its text, as `config.path`; empty if there is none. Of a map the keys are looked at."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Message) and (inner := with_nul(each)):
                return f"{field.name}.{inner}"
            if isinstance(each, str) and "\0" in each:
                return field.name
    return ""
