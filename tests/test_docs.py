"""What the documents say of the code is what the code says of itself."""

import re
import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"


def test_pages_and_tree_are_those_that_the_script_writes() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "write_docs.py"))
    expected = script["contents"]()
    pages = set((DOCS / "commands").glob("*.md"))
    assert pages | {DOCS / "architecture.md"} == set(expected), "run: python scripts/write_docs.py"
    for path, content in expected.items():
        assert path.read_text() == content, f"{path.name}: run python scripts/write_docs.py"


def test_links_lead_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *DOCS.rglob("*.md"), *(REPOSITORY / "benchmarks").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_links_lead_to_sections_that_are_there() -> None:
    for page in [REPOSITORY / "README.md", *DOCS.rglob("*.md"), *(REPOSITORY / "benchmarks").rglob("*.md")]:
        for target, section in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
            if "://" not in target:
                headings = re.findall(
                    r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.M
                )
                anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert section in anchors, f"{page.name} links to {target}#{section}"
