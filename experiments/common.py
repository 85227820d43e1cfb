"""The tables of the experiments."""


def table(names: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(fraction: float) -> str:
    """Of a fraction, with one decimal and without the sign."""
    return f"{100 * fraction:.1f}"
