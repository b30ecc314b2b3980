"""The documents of a small corpus."""

from __future__ import annotations

TEXTS = [f"document {i}: " + " ".join(str((i * 89 + j * j * 31) % 997) for j in range(10 + i % 7)) for i in range(40)]
