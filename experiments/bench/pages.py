"""A table that a command prints, in its place in a page."""

from pathlib import Path


def put_into(page: Path, name: str, found: str) -> None:
    """Writes a text between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Args:
      page: in UTF-8, with both comments.
      name: in the comments.
      found: what stands between them from now on.

    Raises:
      ValueError: the page has no such place.

    Example:
      >>> import tempfile
      >>> page = Path(tempfile.mkdtemp()) / "page.md"
      >>> _ = page.write_text("a <!-- n --> old <!-- end of n --> b", encoding="utf-8")
      >>> put_into(page, "n", "new")
      >>> page.read_text(encoding="utf-8").split()
      ['a', '<!--', 'n', '-->', 'new', '<!--', 'end', 'of', 'n', '-->', 'b']
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{page} has no place for it; write {begin} and {end} there")
    page.write_text(f"{before}{begin}\n\n{found}\n\n{end}{after}", encoding="utf-8")
