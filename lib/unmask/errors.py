"""The errors that users are meant to see."""


class UnmaskError(ValueError):
    """Bad input or a store that cannot be used: one line that says which, what it was, and what
    is allowed."""

    def _render_traceback_(self):
        # IPython asks the exception itself; a notebook's reader needs the line, not fifty frames.
        return [f"{type(self).__name__}: {self}"]


class Degenerate(UnmaskError):
    """Of this network it is not known, as of one that pruning has brought to nothing: other work
    goes on."""
