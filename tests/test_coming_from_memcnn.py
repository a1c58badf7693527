"""The page on memcnn: its code runs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "book" / "coming_from_memcnn.md"


def test_the_code_of_the_page_runs_from_top_to_bottom():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    gradients = [p.grad for name in ("model", "unet") for p in names[name].parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert names["images"].shape == (3, 1, 8, 8)
