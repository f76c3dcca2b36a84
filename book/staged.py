"""A Sphinx extension: it stops a build of anything but the copy that `build.py` stages, says in the
footer what the book was built from, mends a role that WAI-ARIA no longer has, and leads from a
caption to its picture."""

import re
import sys
from datetime import datetime, timezone
from pathlib import Path

from unmask.store import commit, processor


def setup(app):
    if (Path(app.srcdir) / "Makefile").exists():
        # no error of Sphinx, which Jupyter Book would follow by a traceback
        sys.exit("The pages here are not executed. `make book` executes them and builds the book.")
    app.connect("config-inited", stamp)
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True}


def stamp(app, config):
    said = f"Built on {datetime.now(timezone.utc).date()} from commit {commit()} on {processor()}."
    config.html_theme_options["extra_footer"] = said


def mend(app, page, template, context, doctree):
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        figure = r'(src="([^"]+\.svg)"[^>]*>\s*<figcaption>.*?)(<a class="headerlink")'
        linked = r'\1<span class="picture"> · <a href="\2">SVG</a></span>\3'
        context["body"] = re.sub(figure, linked, body, flags=re.DOTALL)
