"""The screens. A further one is a module here, a line in `PAGES`, and a line in `navigation.SCREENS`."""

from types import ModuleType

from optiq.lab.pages import jobs, models, quantize
from optiq.registry import Table

PAGES: Table[ModuleType] = Table("page")
PAGES.add("models", models)
PAGES.add("quantize", quantize)
PAGES.add("jobs", jobs)
