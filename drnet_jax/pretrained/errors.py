"""What is wrong with weights."""


class WeightsError(ValueError):
    """Weights cannot be read or written, or are of another network; the message says what to do."""
