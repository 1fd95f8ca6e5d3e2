"""``python -m dqcore``."""

from dqcore.cli import main

raise SystemExit(main())
