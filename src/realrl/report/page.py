"""Turn data into one HTML file with scripts, styles and data inside. Its security policy forbids loading anything else.

Model text is untrusted. The file contains it only as JSON in a script element of type application/json, with `<`, `>`, `&`
and line separators escaped. The scripts show it as text, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from string import Template
from typing import Any

_SCRIPTS = ("vendor/uPlot.iife.min.js", "charts.js", "rollouts.js", "report.js")
_STYLES = ("vendor/uPlot.min.css", "report.css")
# Includes C1 controls, and lone surrogates, which are not possible in UTF-8.
_UNSAFE = re.compile("[<>&\u2028\u2029\x7f-\x9f\ud800-\udfff]")


def render_page(data: dict[str, Any] | None, *, live: bool = False) -> str:
    """The page with `data` inside or, if `live`, a page that regularly asks its own server for the data."""
    scripts, styles = [_asset(name) for name in _SCRIPTS], [_asset(name) for name in _STYLES]
    return Template(_asset("template.html")).substitute(
        policy=policy(live=live),
        title=_html(str(data["title"]) if data else "watching"),
        live="live" if live else "saved",
        # uPlot's licence requires its notice in every copy.
        licence=_asset("vendor/uPlot.LICENSE"),
        styles="".join(f"<style>{style}</style>\n" for style in styles),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        data=script_json(data),
    )


def policy(*, live: bool) -> str:
    """The Content-Security-Policy: allows our scripts and styles by their hashes, images in the file, and `live` data."""
    scripts, styles = (" ".join(f"'{_hash(_asset(name))}'" for name in names) for names in (_SCRIPTS, _STYLES))
    connect = "; connect-src 'self'" if live else ""
    own = f"script-src {scripts}; style-src {styles}; img-src data:{connect}"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def script_json(data: Any) -> str:
    """JSON that cannot end a script element or start markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _html(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _asset(name: str) -> str:
    return files("realrl.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
