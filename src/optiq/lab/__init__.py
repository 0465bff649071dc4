"""The workbench: pages in the browser over `optiq` commands, which run as processes of their own."""
