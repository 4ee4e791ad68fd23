"""`python -m wellhead` is the command `wellhead`."""

from __future__ import annotations

from wellhead.cli import main

raise SystemExit(main())
