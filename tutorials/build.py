"""Build the notebooks: `NN_name.py` (source, in percent format) -> `NN_name.ipynb`, executed.

    python -m tutorials.build            # all, about five minutes on two cores; needs the extra [notebooks]
    python -m tutorials.build 01 07      # only these two

A notebook is written only if all its cells ran. In the source, `# %%` begins a code cell and `# %% [markdown]` a text cell.
"""

import argparse
import json
import re
import time
from pathlib import Path

from minflamingo.training.checkpoint import write_atomically

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)


def read_cells(path: Path) -> list[dict]:
    """The cells of a source file: {"cell_type": "code" or "markdown", "source": text, "tags": [...]}."""
    cells = []
    for part in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:  # nothing is before the first
        header, _, text = part.partition("\n")
        if not (known := re.fullmatch(r"( \[markdown\])?(?: tags=(\[.*\]))?", header)):
            raise ValueError(f"{path.name}: unknown header of a cell: # %%{header}")
        markdown, tags = known.groups()
        text = text.strip("\n")
        if markdown:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.split("\n"))
        cells.append({"cell_type": "markdown" if markdown else "code", "source": text,
                      "tags": json.loads(tags or "[]")})  # fmt: skip
    return cells


def insert_solutions(cells: list[dict]) -> list[dict]:
    """The cells with each exercise replaced by the solution that is folded in a later cell."""
    solutions = [match[1] for cell in cells for match in SOLUTION.finditer(cell["source"])]
    exercises = [cell for cell in cells if "exercise" in cell["tags"]]
    if len(solutions) != len(exercises):
        raise ValueError(f"{len(exercises)} exercises, but {len(solutions)} solutions")
    for cell, solution in zip(exercises, solutions):
        cell["source"] = solution
    return cells


def execute(cells: list[dict]):
    """Run the cells in a new kernel -> the notebook with outputs (an `nbformat.NotebookNode`)."""
    import nbformat.v4 as v4
    from nbclient import NotebookClient

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    for i, cell in enumerate(cells):
        make = v4.new_code_cell if cell["cell_type"] == "code" else v4.new_markdown_cell
        notebook.cells.append(make(cell["source"], id=f"cell-{i}", metadata={"tags": cell["tags"]} if cell["tags"] else {}))
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(FOLDER)}}).execute()  # fmt: skip
    for cell in notebook.cells:
        merged = []  # a cell that prints little by little has many outputs: join neighbours
        for output in cell.get("outputs", []):
            if merged and output.output_type == "stream" and output.name == merged[-1].get("name"):
                merged[-1].text += output.text
            else:
                merged.append(output)
        for output in merged:
            if output.output_type == "stream":  # of a progress bar only the last state
                output.text = "\n".join(line.split("\r")[-1] for line in output.text.replace("\r\n", "\n").split("\n"))
        if cell.cell_type == "code":
            cell.outputs = merged
    return notebook


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", help="for example 01 07; default: all")
    chosen = parser.parse_args().numbers
    for path in SOURCES:
        if chosen and path.name[:2] not in chosen:
            continue
        began = time.monotonic()
        notebook = execute(read_cells(path))
        write_atomically(path.with_suffix(".ipynb"), lambda temporary, notebook=notebook: nbformat.write(notebook, temporary))
        print(f"{path.stem}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
