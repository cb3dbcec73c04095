"""What the two scripts share is the same text. After an edit of fmer_continuous.py,

    python tests/maintenance/shared.py

copies it into fmer_kitchen.py, whose own are OWN and the lines OWN_LINES of main.
Its `chosen_tasks`, which fmer_continuous.py has no need of, stands before `make_env`.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ["header", "Args", "chosen_tasks", "make_env", "episode_metrics"]
OWN_LINES = ["    task = ", "    label = "]


def blocks(text: str) -> dict[str, str]:
    """The top-level definitions by name; what is before and after them: header, end."""
    named = {}
    for block in text.split("\n\n\n"):
        definition = re.search(r"^(?:def|class) (\w+)", block, re.MULTILINE)
        name = definition[1] if definition else "end" if named else "header"
        assert name not in named, f"two blocks named {name}"
        named[name] = block
    return named


def with_shared_text(kitchen: str, continuous: str) -> str:
    """fmer_kitchen.py as it should be: fmer_continuous.py with the kitchen's own parts."""
    shared = blocks(continuous)
    own = {name: blocks(kitchen)[name] for name in OWN}
    order = list(shared)
    order.insert(order.index("make_env"), "chosen_tasks")
    text = "\n\n\n".join((shared | own)[name] for name in order)
    for start in OWN_LINES:
        line = re.compile(f"^{start}.*$", re.MULTILINE)
        assert len(line.findall(text)) == len(line.findall(kitchen)) == 1, start
        text = text.replace(line.search(text)[0], line.search(kitchen)[0])
    return text


if __name__ == "__main__":
    continuous = (ROOT / "fmer_continuous.py").read_text(encoding="utf-8")
    path = ROOT / "fmer_kitchen.py"
    text = with_shared_text(path.read_text(encoding="utf-8"), continuous)
    path.write_text(text, encoding="utf-8")
