"""The report: one file, nothing from a network, and in a real browser it sorts, filters and changes its colours without an error."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import everything, half, made, none, record
from PIL import Image

from bench.leaderboard.html import to_html
from bench.published import published_rows

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PICTURE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PICTURE, "webp")
NO_PICTURES: dict[str, Any] = {"items": [], "images": [], "links": [], "note": ""}


def item(method: str, target: str, style: str, obj: str, seen: str | None) -> dict[str, Any]:
    seen_as = {"style_pred": seen, "object_pred": obj, "image": 0}
    return {"method": method, "target": target, "style": style, "object": obj, "seed": 1, **seen_as}


PICTURES: dict[str, Any] = {
    "items": [
        item("none", "", "a", "x", "a"), item("none", "", "b", "x", "b"),
        item("Half", "style:a", "a", "x", "a"), item("Half", "style:a", "b", "x", "b"),
    ],
    "images": [base64.b64encode(PICTURE.getvalue()).decode()], "links": [""], "note": "Some.",
}  # fmt: skip


def page(pictures: dict[str, Any] = PICTURES, published: list[dict[str, Any]] | None = None) -> str:
    records = [none(), record("Half", half), record("Good")]
    return to_html(replace(made(*records), published=tuple(published or [])), records, pictures)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_it_is_one_file_that_asks_nobody() -> None:
    text = page()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "default-src 'none'" in text
    assert not re.search(r"\bfetch\(|XMLHttpRequest|@import|url\(", text)
    assert page() == text


def test_numbers_are_those_of_the_leaderboard() -> None:
    records = everything()
    found = made(*records)
    data = data_of(to_html(found, records, NO_PICTURES))
    for table in data["tables"]:
        for own in table["rows"]:
            (row,) = [row for row in found.rows if row.label == own["label"]]
            for key, cell in own["cells"].items():
                assert cell["value"] == row.cells[table["key"], key].value
    assert data["provenance"] == found.provenance
    assert {card["label"] for card in data["cards"]} == {one.label for one in records}


def test_no_label_ends_the_script() -> None:
    records = [none(), record("</script><b>")]
    text = to_html(made(*records), records, NO_PICTURES)
    assert text.count("</script>") == 2
    assert {"</script><b>", "none"} == {card["label"] for card in data_of(text)["cards"]}


def drive(text: str, folder: Path, script: str, *options: str) -> Any:
    """What a script in the page, which sets `result`, finds; errors and refused requests end the test."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    watch = "<script>const errors=[];addEventListener('error',e=>errors.push(e.message));" + (
        "addEventListener('securitypolicyviolation',e=>errors.push(e.blockedURI));</script>"
    )
    told = (
        f"<script>{{let result;{script};const p=document.createElement('pre');p.id='told';"
        "p.textContent=JSON.stringify({result,errors});document.body.append(p)}</script>"
    )
    path = folder / "page.html"
    path.write_text(text.replace("<style>", watch + "<style>", 1).replace("</body>", told + "</body>"))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom", *options]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    assert answer["errors"] == []
    return answer["result"]


def test_tables_sort_and_tabs_change(tmp_path: Path) -> None:
    script = """
        const names = () => [...document.querySelectorAll("#leaderboard tbody td.method a")].map(a => a.textContent);
        result = [names()];
        const ua = [...document.querySelectorAll("#leaderboard th button")].find(b => b.textContent === "UA (%)");
        ua.click(); result.push(names(), ua.parentElement.getAttribute("aria-sort"));
        ua.click(); result.push(names());
        const seen = () => [...document.querySelectorAll("#leaderboard .numbers")].filter(n => n.offsetHeight).length;
        const button = [...document.querySelectorAll("#leaderboard button")].find(b => b.textContent === "Intervals in numbers");
        result.push(seen()); button.click(); result.push(seen());
        [...document.querySelectorAll("[role=tab]")].at(-1).click();
        result.push(document.querySelector("#leaderboard thead").textContent.includes("Fit (s)"));
    """
    first, down, sort, up, hidden, numbers, cost = drive(page(), tmp_path, script)
    assert first == ["none", "Good", "Half"]
    assert (hidden, numbers) == (0, 3 * 4), "UA, IRA, CRA and score of three rows"
    assert (down, sort, up, cost) == (["Good", "Half", "none"], "descending", ["none", "Half", "Good"], True)


def test_pictures_filter_and_failures_come_first(tmp_path: Path) -> None:
    script = """
        const rows = () => [...document.querySelectorAll("#gallery tbody tr")].map(r => r.textContent);
        const choose = (label, value) => { const s = [...document.querySelectorAll("#gallery label")]
          .find(l => l.textContent.startsWith(label)).querySelector("select"); s.value = value; s.dispatchEvent(new Event("change")); };
        result = [rows()];
        choose("Verdict", "kept"); result.push(rows());
        choose("Verdict", "all"); choose("Asked for", "a"); result.push(rows());
        const images = [...document.querySelectorAll("#gallery img")];
        result.push(images.map(i => i.alt), images.every(i => i.complete && i.naturalWidth));
    """
    every, kept, own, alts, whole = drive(page(), tmp_path, script)
    assert [text[:1] for text in every] == ["a", "b"]
    assert "still there: a" in every[0]
    assert len(kept) == 1
    assert kept[0].startswith("b")
    assert [text[:1] for text in own] == ["a"]
    assert "Half, style:a erased, asked for x in style a: judged a · x, still there" in alts
    assert whole


def test_colours_change_and_a_phone_scrolls_tables_alone(tmp_path: Path) -> None:
    script = """
        const ground = () => getComputedStyle(document.body).backgroundColor;
        const before = ground(); document.getElementById("theme").click();
        result = [before !== ground(), document.documentElement.scrollWidth <= innerWidth, innerWidth,
          [...document.querySelectorAll("svg")].every(s => s.getAttribute("aria-label")),
          document.querySelectorAll("#concepts .heat td").length,
          [...document.querySelectorAll("#tradeoff svg")].every(s => s.parentElement.scrollWidth <= s.parentElement.clientWidth)];
    """
    changed, fits, width, named, cells, whole = drive(page(), tmp_path, script, "--window-size=500,900")
    assert changed
    assert fits, width
    assert named
    assert cells == 3 * (1 + 3)
    assert whole, "a trade-off is seen to its right end"


def test_a_look_inside_follows_the_step(tmp_path: Path) -> None:
    code = PICTURES["images"][0]
    look = {
        "method": "Half", "target": "style:a", "grid": {"mid_block.attentions.0": 2}, "tops": [code],
        "latents": [{"hookpoint": "mid_block.attentions.0", "latent": 7, "strengths": [1.0, 0.0], "top": [0]}],
        "pictures": [{"style": "a", "object": "x", "seed": 1, "base": code, "edited": code,
                      "masks": {"mid_block.attentions.0": ["0000", "1100", "0011", "1010"]}}],
    }  # fmt: skip
    records = [none(), record("Half", half)]
    text = to_html(made(*records), records, NO_PICTURES, [look])
    script = """
        const seen = () => [...document.querySelectorAll("#inside svg rect")]
          .map(r => ["x", "y", "fill"].map(name => r.getAttribute(name)));
        result = [seen()];
        const slider = document.querySelector("#inside input"); slider.value = 2; slider.dispatchEvent(new Event("input"));
        result.push(seen(), document.querySelector("#inside output").textContent);
    """
    first, second, told = drive(text, tmp_path, script)
    assert first == [["0", "0", "#d62728"], ["1", "0", "#d62728"]]
    assert second == [["0", "0", "#d62728"], ["0", "1", "#8e44ad"], ["1", "1", "#1f5fd0"]]
    assert told == "step 2 of 2"


def test_many_rows_are_numbered_and_untuned_ones_stand_back(tmp_path: Path) -> None:
    """More than eight rows do not fit into a chart by name; in the gallery tuned rows hide their untuned ones until asked."""
    names = [f"m{k}" for k in range(5)]
    records = [none(), *(record(f"{name}{more}", method=name) for name in names for more in ("", " (untuned)"))]
    cells = [item(f"m0{more}", "style:a", "a", "x", "a") for more in ("", " (untuned)")]
    pictures = {**PICTURES, "items": [*PICTURES["items"][:1], *cells]}
    text = to_html(made(*records), records, pictures)
    script = (
        "const names=[...document.querySelectorAll('#tradeoff .names b')].map(b=>b.textContent);"
        "const drawn=[...document.querySelectorAll('#tradeoff svg .name')].map(t=>t.textContent);"
        "const heads=()=>[...document.querySelectorAll('#gallery thead th')].map(t=>t.textContent);const before=heads();"
        "const rows=[...document.querySelectorAll('#gallery select')].at(-1);rows.value='all';rows.dispatchEvent(new Event('change'));"
        "result={names,drawn,before,after:heads()}"
    )
    found = drive(text, tmp_path, script)
    assert sorted(found["names"]) == sorted(["1", *(f"{k}{more}" for k in range(2, 7) for more in ("", "u"))])
    assert found["drawn"] == ["1", "2, 3, 4, 5, 6"], "rows at one place share a label"
    assert found["before"] == ["asked for", "none", "m0"]
    assert found["after"] == ["asked for", "none", "m0", "m0 (untuned)"]


def test_broken_pictures_are_not_called_gone_alone(tmp_path: Path) -> None:
    """Far from every class, what the judge says it sees there means little."""
    base = record("Good")
    far = [(target, style, obj, seed) == ("style:a", "a", "x", 1) for target, style, obj, seed in zip(
        *(base.outcomes[name] for name in ("target", "style", "object", "seed")), strict=True)]  # fmt: skip
    records = [none(), record("Good", outcomes={**base.outcomes, "far": far}), record("Half", half)]
    items = [item("none", "", "a", "x", "a"), item("Good", "style:a", "a", "x", "b"), item("Half", "style:a", "a", "x", "b")]
    text = to_html(made(*records), records, {**PICTURES, "items": items})
    script = "result=[...document.querySelectorAll('#gallery tbody figure')].map(f=>[f.className,f.textContent])"
    assert drive(text, tmp_path, script) == [["plain", "a · x"], ["broken", "gone, broken: b · x"], ["good", "gone: b · x"]]


def test_what_papers_say_stands_apart(tmp_path: Path) -> None:
    rows = published_rows("unlearncanvas@official")
    assert {"esd-styles", "saeuron-objects"} & {row["id"] for row in rows}
    text = drive(page(NO_PICTURES, rows), tmp_path, "result = document.getElementById('published').textContent")
    assert "Nothing here was measured by this project" in text
    assert "Doubt: " in text
    assert published_rows("minicanvas@official") == []
