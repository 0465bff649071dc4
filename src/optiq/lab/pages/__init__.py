"""The screens. A further one is a module here, a line in `PAGES`, and a line in `navigation.SCREENS`."""

from types import ModuleType

from optiq.lab.pages import chat, compare, evaluate, finetune, jobs, kvcache, models, quantize, server
from optiq.registry import Table

PAGES: Table[ModuleType] = Table("page")
PAGES.add("models", models)
PAGES.add("chat", chat)
PAGES.add("compare", compare)
PAGES.add("quantize", quantize)
PAGES.add("kv-cache", kvcache)
PAGES.add("fine-tune", finetune)
PAGES.add("evaluate", evaluate)
PAGES.add("server", server)
PAGES.add("jobs", jobs)
