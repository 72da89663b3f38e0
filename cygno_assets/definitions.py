"""The entry point that workspace.yaml names."""

from __future__ import annotations

from cygno_assets.build import build_defs

defs = build_defs()
