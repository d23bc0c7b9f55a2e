"""Every Python block of the documentation does what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import blocks, run_blocks

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "runner.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    assert run_blocks(page) > 5


def test_a_block_that_prints_something_else_or_raises_is_noticed_at_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# x\n\n```python\nprint(await_me := 5)\n```\n\n```text\n6\n```\n\n```python no-run\n1 / 0\n```\n")
    assert [block.line for block in blocks(page)] == [4]
    with pytest.raises(AssertionError, match=r"page\.md:4 prints\n5"):
        run_blocks(page)
    page.write_text("```python\nimport asyncio\nawait asyncio.sleep(3600)\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(page)
    assert caught.traceback[-1].lineno == 3


def test_a_page_that_leaves_a_task_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport asyncio\ntask = asyncio.create_task(asyncio.sleep(9))\n```\n")
    with pytest.raises(AssertionError, match="leaves tasks"):
        run_blocks(page)
