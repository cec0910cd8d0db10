"""A table that a command prints, in its place in a page."""

from pathlib import Path


def check_places(page: Path, *names: str) -> None:
    """Refuses a page that has no place for a text, before anything is computed for it.

    Args:
      page: in UTF-8.
      *names: in the comments.

    Raises:
      ValueError: there is no such page, or it lacks a comment.
    """
    if not page.is_file():
        raise ValueError(f"expected a page to write into, got {page}: no such file")
    text = page.read_text(encoding="utf-8")
    for name in names:
        _parts(page, text, name)


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
    before, after = _parts(page, page.read_text(encoding="utf-8"), name)
    page.write_text(f"{before}\n\n{found}\n\n{after}", encoding="utf-8")


def _parts(page: Path, text: str, name: str) -> tuple[str, str]:
    """What stands before a place, with its first comment, and behind it."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{page} has no place for it; write {begin} and {end} there")
    return before + begin, end + after
