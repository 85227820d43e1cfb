"""Why a model cannot be exported, or an export cannot be used, in words."""


class ExportError(RuntimeError):
    """A model cannot be exported, or its export does not agree with it; the message says why."""
