"""Write the results of several runs into the README, the model card and the first figure.

    python train_tiny.py --seed K --out runs/K          for K = 0 … 4; copy each results.json to figures/results_seedK.json
    python -m tutorials.make_results COMMIT             the commit of these runs

tests/test_readme.py checks that the README and the card agree with the files in figures/.
"""

import json
import sys
from pathlib import Path
from statistics import mean, median

from data_toy.evaluation_tasks import format_table
from minflamingo.plots import plot_shots

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "tutorials" / "figures"
CARD = """# The ready model `tiny`

`minflamingo.load("tiny")` loads it from a checkout. It was trained from nothing on synthetic data, on two CPU cores.

- command: `python train_tiny.py` (seed 0), commit `{commit}`
- size: 1.0M parameters, 4.2 MB; images of 48 x 48 pixels, 8 visual tokens per image
- data: the toy world ([data_toy](../../../data_toy/README.md)); it knows nothing else
- use: to try the code. It is not useful for real images.
- licence: MIT, as the code

Accuracy (%) on held-out cases ({n} queries per cell) against the number of shots. `binding`, `noisy` and `rule` choose among
the names of the prompt; all other tasks generate text, and only the exact answer counts.

{table}
"""


def summary(runs: list[dict]) -> dict[str, dict]:
    """The tasks of several results.json as one: score = mean of the runs, interval = lowest and highest run."""
    tasks = {}
    for name, entry in runs[0]["tasks"].items():
        scores = {shots: [run["tasks"][name]["shots"][shots]["score"] for run in runs] for shots in entry["shots"]}
        cells = {shots: {"score": mean(values), "interval": [min(values), max(values)]} for shots, values in scores.items()}
        tasks[name] = {"chance": entry["chance"], "shots": cells}
    return tasks


def seeds_table(tasks: dict[str, dict], n: int) -> str:
    """Mean, lowest and highest run of each task with 8 shots, or the largest number of shots that it has."""
    rows = [f"| {n} seeds | shots | mean | lowest | highest |", "|---|---:|---:|---:|---:|"]
    for name, entry in tasks.items():
        shots = "8" if "8" in entry["shots"] else list(entry["shots"])[-1]
        low, high = entry["shots"][shots]["interval"]
        rows.append(f"| `{name}` | {shots} | {entry['shots'][shots]['score']:.1f} | {low:.1f} | {high:.1f} |")
    return "\n".join(rows)


def replace_section(text: str, name: str, content: str) -> str:
    """Replace what is between `<!-- name -->` and `<!-- end of name -->`."""
    before, rest = text.split(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{content}\n<!-- end of {name} -->{rest.split(f'<!-- end of {name} -->')[1]}"


def main(commit: str) -> None:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("results_seed*.json"))]
    tasks, n = summary(runs), runs[0]["tasks"]["vqa"]["shots"]["8"]["n"]
    plot_shots({"tasks": tasks}, FIGURES / "shots.png", band=f"lowest and highest of {len(runs)} seeds")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    which = f"`python train_tiny.py` ends with this table (seed 0, commit {commit}, {n} queries per cell):"
    readme = replace_section(readme, "results", f"{which}\n\n{format_table(runs[0]['tasks'])}\n")
    readme = replace_section(readme, "seeds", seeds_table(tasks, len(runs)))
    minutes = median(run["seconds"]["total"] for run in runs) / 60
    time = f"On two slow CPU cores, the training steps and the evaluation took {minutes:.1f} minutes "
    readme = replace_section(readme, "time", f"{time}(median of {len(runs)} runs, commit {commit}).")
    (ROOT / "README.md").write_text(readme, encoding="utf-8")
    card = CARD.format(commit=commit, n=n, table=format_table(runs[0]["tasks"]))
    (ROOT / "tutorials" / "pretrained" / "tiny" / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
