from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from ixc.io.journal import Journal


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.data())
def test_whatever_a_kill_leaves_of_the_last_line_the_lines_before_it_stay(
    texts: list[str], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "j")
        for text in texts:
            journal.append({"text": text})
        lines = list(journal)
        cut = data.draw(st.integers(0, len(lines[-1]) - 1))
        journal.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        assert list(journal) == lines[:-1]
        journal.append({"text": texts[-1]})
        assert list(journal) == lines


def test_a_journal_that_was_never_written_is_empty_and_can_be_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.remove()
    assert list(journal) == []
