"""Guest ISAs: one folder each; nothing outside it knows that ISA."""
