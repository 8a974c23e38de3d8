"""The documentation: code runs, links lead somewhere, figures are those that were measured.

helpers/pages.py says how a block is hidden, expected to fail, or left out. docs/distributed.md runs
in test_torchrun.py. The site itself is built by ci/docs.sh, for which a warning is an error.

Faults tried by hand: a name misspelt in a block, another message, a link to a heading that is not
there, a figure changed in a page, an optimizer without a page, a page of an optimizer with another
class, without its formula, an option or the link to the paper, a command without a reason.
"""

import inspect
import re

import pytest
from helpers.page import PAGE
from helpers.pages import list_blocks, list_commands, run_page
from helpers.processes import ROOT
from torch.nn import Parameter

import fused_optim
from fused_optim.cli import main as command_line
from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.optimizers.base import FusedOptimizer

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/recipes/README.md")),
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
]
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")
# what a reader asks: page and heading where the answer is, and words of the answer
ANSWERS = {
    "which format for 7 B parameters on 80 GB": (
        "docs/choosing.md#7-b-parameters-on-80-gb",
        'weights="split", states="int8"',
    ),
    "how to clip under FSDP2": ("docs/distributed.md#fsdp2", "max_grad_norm=0.1"),
    "how to move a checkpoint from torch.optim.AdamW": (
        "docs/checkpoints.md#from-torchoptim",
        'ours.load_state_dict(torch.load("adamw.pt"))',
    ),
    "what split loses": ("docs/formats/split.md#what-split-loses", "values below `2**-134`"),
    "how to add an optimizer": (
        "docs/adding-an-optimizer.md#adding-an-optimizer",
        "kernels/rules/signatures.py",
    ),
}


def name_page(path):
    return str(path.relative_to(ROOT))


def split_sections(path):
    """Return the text below each heading, by its anchor: headings of GitHub and of MyST."""
    sections, anchor = {}, ""
    prose = re.sub(
        r"^ *```.*?^ *```$",
        lambda m: m[0].replace("\n#", "\n "),
        path.read_text(),
        flags=re.M | re.S,
    )
    for line in prose.splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip().lower()
            anchor = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        sections[anchor] = sections.get(anchor, "") + line + "\n"
    return sections


def list_links(path):
    """Yield the links of a page to files of the repository, as path and anchor."""
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for target in LINK.findall(prose):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield (path.parent / file).resolve() if file else path, anchor


@pytest.mark.parametrize("path", PAGES, ids=name_page)
def test_page(path, tmp_path, monkeypatch):
    """Run the Python blocks and the commands; follow the links."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    blocks = list(list_blocks(text))
    named = [block for block in blocks if block.language and block.mark != "setup"]
    assert len(named) == len(re.findall(r"^ *```\S", text, re.M))
    if path != PAGE:
        run_page(path)
    for block in blocks:
        where = f"{path}:{block.line}"
        if block.language in ("bash", "console"):
            run_commands(block, where)
    for target, anchor in list_links(path):
        assert target.exists(), (path, target)
        assert not anchor or anchor in split_sections(target), (path, target, anchor)


def run_commands(block, where):
    for program, *arguments in list_commands(block):
        for file in re.findall(r"\b(?:ci|examples|docs|tests)/[\w/.-]*\w", " ".join(arguments)):
            assert (ROOT / file).exists(), (where, file)
        if not block.mark.startswith("needs: "):
            assert program == "fused-optim", f"{where}: not run; say why in <!-- needs: ... -->"
            assert command_line.main(arguments) == 0, where


def test_the_replacement_compiles():
    """The diff of the README is that of the quick start, and leads to a program."""
    (readme,), (quickstart,) = (
        [block for block in list_blocks(path.read_text()) if block.language == "diff"]
        for path in (ROOT / "README.md", DOCS / "quickstart.md")
    )
    assert readme.code == quickstart.code
    after = [line[1:] for line in readme.code.splitlines() if not line.startswith("-")]
    compile("\n".join(after), "README.md", "exec")


@pytest.mark.parametrize("question", ANSWERS)
def test_answers_are_two_clicks_from_the_readme(question):
    link, words = ANSWERS[question]
    file, _, anchor = link.partition("#")
    readme = ROOT / "README.md"
    first = {target for target, _ in list_links(readme) if target.suffix == ".md"}
    second = {link for page in first for link in list_links(page)} | set(list_links(readme))
    assert (ROOT / file, anchor) in second or (ROOT / file, "") in second
    assert words in split_sections(ROOT / file)[anchor]


def list_optimizers():
    """Return the public optimizer classes."""
    found = [getattr(fused_optim, name) for name in fused_optim.__all__]
    return [c for c in found if isinstance(c, type) and issubclass(c, FusedOptimizer)]


@pytest.mark.parametrize("optimizer", list_optimizers(), ids=lambda c: c.__name__)
def test_every_optimizer_has_a_page(optimizer):
    """Require formula, class, paper, and every option that the notation page does not explain."""
    page = DOCS / "optimizers" / f"{optimizer.__name__}.md"
    assert page.exists(), f"write {page.relative_to(ROOT)}: the page of {optimizer.__name__}"
    text = page.read_text()
    assert text.startswith(f"# {optimizer.__name__}\n")
    documented = re.findall(r"^\.\. autoclass:: fused_optim\.(\w+)$", text, re.M)
    assert documented == [optimizer.__name__]
    sections = split_sections(page)
    assert re.search(r"^\$\$\n.+?\n\$\$$", sections["formula"], re.M | re.S)
    source = re.sub(r"\s+", " ", optimizer.__doc__).partition("Source: ")[2]
    links = [link.rstrip(".;,") for link in re.findall(r"https://\S+", source)]
    assert links
    assert [link for link in links if f"({link})" not in sections["reference"]] == []
    shared = re.findall(r"`(\w+)`", split_sections(page.parent / "index.md")["options-of-all"])
    options = set(inspect.signature(optimizer).parameters) - {"additions", *shared}
    assert [name for name in options if not re.search(rf"`{name}\b", sections["options"])] == []


def test_every_public_name_is_on_one_page():
    text = "".join(path.read_text() for path in (DOCS / "optimizers").glob("*.md"))
    documented = re.findall(r"^\.\. auto(?:class|function):: fused_optim\.(\w+)$", text, re.M)
    additions = {"Additions"}  # docs/options.md
    assert sorted(documented) == sorted(set(fused_optim.__all__) - additions)
    table = (DOCS / "choosing.md").read_text()
    index = (DOCS / "optimizers" / "index.md").read_text()
    for name in (optimizer.__name__ for optimizer in list_optimizers()):
        assert f"[`{name}`](optimizers/{name}.md)" in table
        assert f"[{name}]({name}.md)" in index


def test_every_format_has_a_page():
    linked = {target for target, _ in list_links(DOCS / "formats.md")}
    pages = set((DOCS / "formats").glob("*.md"))
    assert pages <= linked
    assert {path.stem for path in pages} - {"states-bf16", "states-8bit"} == set(WEIGHTS)
    text = "".join(path.read_text() for path in pages if path.stem.startswith("states-"))
    assert all(f'"{states}"' in text for states in STATES)


@pytest.mark.parametrize("path", sorted((DOCS / "formats").glob("*.md")), ids=name_page)
def test_formats_have_the_committed_figures(path):
    """Guard against figures that nobody has measured, and against those of an older format."""
    text = path.read_text()
    results = ROOT / "benchmarks" / "results"
    names = ("formats.md", "formats_training.md", "formats_training_1000.md")
    measured = "".join((results / name).read_text() for name in names)
    measured = {line.replace("states='", "").replace("'", "") for line in measured.splitlines()}
    for line in re.findall(r"^\| \w+ \|(?=.*(?:\+-|%|\d, \d)).*$", text, re.M):
        assert line in measured
    rows = re.findall(
        r'^\| (\w+), `(\w+)="(\w+)"` \| (\d) \| (\d) \| (\S+).* \| (\S+) \| (\S+) \|$', text, re.M
    )
    assert rows
    for dtype, option, value, *figures in rows:
        own = {"weights": path.stem} if option == "states" else {}
        if option == "weights":
            own["states"] = {"states-bf16": "bf16", "states-8bit": "int8"}[path.stem]
        check_bytes(dtype, {**own, option: value}, [float(figure) for figure in figures])


def check_bytes(dtype, formats, figures):
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    param = Parameter(torch.empty(1 << 24, dtype=kinds[dtype], device="meta"))
    betas = (0.9, 0.99) if formats["states"] == "param" else (0.9, 0.999)
    need = fused_optim.memory([param], max_grad_norm=1.0, betas=betas, **formats)
    counted = [need.parameters, need.gradients, need.states, need.total, need.moved]
    assert figures == [round(size / need.numel, 2) for size in counted]
