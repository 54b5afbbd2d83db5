"""Tables that read well in a notebook and in a terminal."""

from __future__ import annotations


class Table:
    """Rows under a header: a Markdown table in a notebook, aligned columns elsewhere."""

    def __init__(self, header: list[str], rows: list[list[str]], caption: str = ""):
        self.header, self.rows, self.caption = header, rows, caption

    def __repr__(self) -> str:
        """Return the table with its columns aligned by spaces."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return f"{text}\n{self.caption}".rstrip()

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{self.caption}".rstrip()
