"""What can be wrong with what a user gives, in words."""


class ExportDirectoryError(ValueError):
    """A directory that is no whole, usable export; the message names the file and the remedy."""


class PictureError(ValueError):
    """A picture that cannot be read; the message says why."""


class BudgetError(ValueError):
    """A budget that cannot be kept, or nothing is calibrated; the message says what can be done."""
