"""The six reference models of the Qwen3.5 family guide as data, and how much memory each wants. No MLX, no network.

Sizes and scores are the guide's, published for its own quantizations; none of them was measured here.

Source: "Qwen3.5 on Apple Silicon", the family guide of mlx-optiq, available quants
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1_000_000_000

# Beside the weights: the process and a prompt's chunk (below 0.5 GB), and 16-bit keys and values of 16,384 tokens, at most
# 65,536 bytes a token in this family (27B: 16 attention layers, 4 heads of 256 channels, keys and values).
ROOM_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Reference:
    """One model.

    Args:
        id: on the hub.
        family: a name in `optiq.models.families.FAMILIES`.
        size_bytes: of its files.
        gsm8k: percent of GSM8K's problems solved.
        best_for: what the guide recommends it for.
    """

    id: str
    family: str
    size_bytes: int
    gsm8k: float
    best_for: str

    @property
    def needed_bytes(self) -> int:
        """Memory for its weights and a conversation."""
        return self.size_bytes + ROOM_BYTES


def _row(size: str, family: str, tenths_gb: int, gsm8k: float, best_for: str) -> Reference:
    return Reference(f"mlx-community/Qwen3.5-{size}-OptiQ-4bit", family, tenths_gb * GB // 10, gsm8k, best_for)


REFERENCES = (
    _row("0.8B", "qwen3.5-small", 5, 27.0, "toy agents, rewriting prompts"),
    _row("2B", "qwen3.5-small", 14, 48.0, "chat that stays local, classifying"),
    _row("4B", "qwen3.5", 28, 81.5, "laptops"),
    _row("9B", "qwen3.5", 56, 90.0, "everyday work, the default"),
    _row("27B", "qwen3.5", 157, 87.5, "long reasoning"),
    _row("35B-A3B", "qwen3.5", 201, 89.5, "mixture of experts, 3B active"),
)
