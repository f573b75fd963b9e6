"""Draw the tree of a real schedule as docs/images/tree.svg: `python docs/make_figures.py`."""

from __future__ import annotations

from pathlib import Path

from homerlm.merge.schedule import Node, plan

WIDTH, ROW, TOP = 900, 92, 40
OUT = Path(__file__).parent / "images" / "tree.svg"


def main() -> None:
    schedule = plan(40, 15_400, 60, max_chunk_len=2048, target_len=2048, warmup_layers=11, layers=30)
    leaves = len(schedule.leaves)
    height = TOP + ROW * (schedule.height + 1) + 96
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        f'font-size="12" text-anchor="middle"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    ]
    for node in schedule.root.walk():
        parts += draw(node, schedule.height, leaves)
    bottom = TOP + ROW * (schedule.height + 1) - 18
    parts.append(bar(40, bottom, WIDTH - 80, f"document: {schedule.context_len:,} tokens", "#dfe7ee"))
    parts.append(
        f'<text x="{WIDTH / 2}" y="{bottom + 62}" fill="#555">every chunk also holds the instructions and the '
        "question; the lighter part of a chunk is dropped when its layers are done</text></svg>"
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(parts) + "\n")


def centre(node: Node, leaves: int) -> float:
    span = (WIDTH - 80) / leaves
    return 40 + span * ((node.index + 0.5) * 2**node.height)


def draw(node: Node, top: int, leaves: int) -> list[str]:
    x, y = centre(node, leaves), TOP + ROW * (top - node.height)
    wide = 98 if node.height < top else 260
    kept = wide * node.target / node.length
    text = f"{node.length:,} → {node.target:,}" if node.target < node.length else f"{node.length:,} tokens"
    lines = [
        f'<line x1="{x}" y1="{y + 34}" x2="{centre(child, leaves)}" y2="{y + ROW}" stroke="#9aa7b2"/>'
        for child in node.children
    ]
    return [
        *lines,
        f'<rect x="{x - wide / 2}" y="{y}" width="{wide}" height="34" rx="5" fill="#f7e7b0"/>',
        f'<rect x="{x - wide / 2}" y="{y}" width="{kept}" height="34" rx="5" fill="#f2b705"/>',
        f'<text x="{x}" y="{y + 15}">{text}</text>',
        f'<text x="{x}" y="{y + 28}" font-size="10" fill="#444">layers {node.first_layer}–{node.last_layer - 1}</text>',
    ]


def bar(x: float, y: float, width: float, text: str, fill: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="26" rx="5" fill="{fill}"/>'
        f'<text x="{x + width / 2}" y="{y + 17}">{text}</text>'
    )


if __name__ == "__main__":
    main()
