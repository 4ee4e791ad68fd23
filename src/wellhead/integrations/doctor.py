"""`wellhead doctor --engine`: what would be replaced in the installed engine, what not and why."""

from __future__ import annotations

import json
from dataclasses import asdict

from wellhead.integrations import report
from wellhead.integrations.targets import installed, table


def show(engine: str, as_json: bool = False) -> int:
    """Print the report; 0 where every row can be replaced, 1 otherwise."""
    rows, version = report(engine), installed(engine)
    if as_json:
        print(json.dumps({"engine": engine, "version": version, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{engine} {version or 'is not installed'}\n{table(rows)}")
    return 1 if any(row.why for row in rows) else 0
