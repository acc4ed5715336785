"""The page in a real Chromium: it loads clean and from nowhere else, shows the right numbers, sorts, toggles, explains, and is accessible."""

import json
import tempfile
from pathlib import Path

import pytest

from bench.report import page, table
from tests.browser import chrome, demo, shots

pytestmark = pytest.mark.skipif(bool(chrome.missing()), reason=chrome.missing() or "a browser is here")
TABLE = "s0t1"

CONTRAST = """
const seen = [];
const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
const light = (c) => { const f = c.slice(0, 3).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
  return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
  return [255, 255, 255, 1]; };
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n = walk.nextNode(); n; n = walk.nextNode()) {
  const e = n.parentElement;
  if (!n.textContent.trim() || e.closest('script,style,title,.hidden,noscript') || !e.getClientRects().length) continue;
  const s = getComputedStyle(e), text = parse(e.closest('svg') ? s.fill : s.color);
  const a = light(text), b = light(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) seen.push([n.textContent.trim().slice(0, 40), ratio.toFixed(2), e.className.toString()]);
}
return seen;
"""

FAULTS = """
const faults = [], name = (e) => (e.outerHTML || '').slice(0, 90);
if (!document.documentElement.lang) faults.push('no language');
if (!document.title) faults.push('no title');
if (document.querySelectorAll('main').length !== 1) faults.push('not one main');
if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1');
let last = 0;
for (const h of document.querySelectorAll('h1,h2,h3,h4,h5,h6')) {
  if (h.closest('dialog')) continue;
  const level = Number(h.tagName[1]);
  if (level > last + 1) faults.push(`${h.tagName} after H${last}: ${name(h)}`);
  if (!h.textContent.trim()) faults.push(`empty heading ${name(h)}`);
  last = level;
}
const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
if (new Set(ids).size !== ids.length) faults.push('an id is used twice');
for (const a of ['aria-labelledby', 'for'])
  for (const e of document.querySelectorAll(`[${a}]`)) if (!document.getElementById(e.getAttribute(a))) faults.push(`${a} of ${name(e)}`);
for (const t of document.querySelectorAll('table')) {
  if (!t.caption) faults.push(`no caption ${name(t)}`);
  for (const th of t.querySelectorAll('th')) if (!['col', 'row'].includes(th.scope)) faults.push(`no scope ${name(th)}`);
  for (const tr of t.tBodies.length ? t.querySelectorAll('tbody tr') : []) if (!tr.querySelector('th')) faults.push(`row without header ${name(tr)}`);
}
for (const e of document.querySelectorAll('input,select')) if (!e.labels.length) faults.push(`no label ${name(e)}`);
for (const e of document.querySelectorAll('button,a'))
  if (!e.textContent.trim() && !e.ariaLabel) faults.push(`no name ${name(e)}`);
for (const e of document.querySelectorAll('svg')) if (e.getAttribute('role') !== 'img' || !e.ariaLabel) faults.push(`no text for ${name(e)}`);
for (const e of document.querySelectorAll('.scroll')) if (e.tabIndex !== 0 || !e.ariaLabel) faults.push(`scrolls without keys ${name(e)}`);
return faults;
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Made-up results: three pairs, four rows, three seeds, one run diverged, thirty nights."""
    folder = tmp_path_factory.mktemp("demo")
    demo.nights(folder)
    return demo.fill(folder, demo.synthetic.CRD, demo.synthetic.PAIRS[:3], ("student", "kd", "rkd", "iep"))


@pytest.fixture(scope="module")
def sets(results):
    return table.build(results)


@pytest.fixture(scope="module")
def driver(sets, tmp_path_factory):
    """The page, opened once; the logs from before its opening are dropped."""
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(page.html(sets))
    with tempfile.TemporaryDirectory(prefix="kd-browser-", ignore_cleanup_errors=True) as profile, chrome.browser(Path(profile)) as found:
        found.get("about:blank")
        found.get_log("performance")
        found.uri = file.as_uri()
        yield found


@pytest.fixture
def opened(driver):
    """A fresh view of the page, desktop and light."""
    chrome.look(driver, 1400, 1000)
    driver.get(driver.uri)
    return driver


def column(driver, index: int, mark: str = TABLE) -> list[str]:
    """What the rows of a table show in a column, top to bottom."""
    script = "return [...document.querySelectorAll(`#${arguments[0]} tbody.rows tr`)].map((r) => r.cells[arguments[1]].innerText)"
    return driver.execute_script(script, mark, index)


def press(driver, element) -> None:
    """Press with the keyboard, as someone without a mouse does."""
    driver.execute_script("arguments[0].focus()", element)
    from selenium.webdriver.common.keys import Keys

    element.send_keys(Keys.ENTER)


def find(driver, css: str):
    return driver.find_element("css selector", css)


def test_it_loads_clean_and_from_nowhere_else(opened):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert opened.uri in asked and all(url == opened.uri or url.startswith("data:") for url in asked)


def test_it_shows_the_right_numbers(opened, sets):
    found = sets[0].tables[0]
    for j in range(len(found.pairs)):
        shown = column(opened, j + 1)
        for text, row in zip(shown, found.rows, strict=True):
            s = row.cells[j].summary
            assert text.startswith(f"{s.mean:.2f} ± {s.sd:.2f}")
    assert [text.split("\n")[0] for text in column(opened, 0)] == [row.title for row in found.rows]


def test_it_toggles(opened, sets):
    found = sets[0].tables[0]
    kd = next(i for i, row in enumerate(found.rows) if row.method == "kd")
    for view in ("student", "published", "kd", "mean"):
        opened.execute_script("arguments[0].click()", find(opened, f"input[name={TABLE}][value={view}]"))
        text = column(opened, 2)[kd].replace("−", "-")
        cell = found.rows[kd].cells[1]
        expected = {"student": cell.difference, "published": cell.verdict}.get(view)
        if expected:
            assert text.startswith(f"{expected.mean:+.2f} ± {expected.half:.2f}")
        else:
            assert text.startswith("0" if view == "kd" else f"{cell.summary.mean:.2f}")
    assert find(opened, "#said").get_attribute("textContent") == "Showing Mean ± std"


def test_it_sorts_by_what_is_shown(opened, sets):
    means = [row.cells[0].summary.mean for row in sets[0].tables[0].rows]
    button = opened.find_elements("css selector", f"#{TABLE} button.sort")[1]
    head = button.find_element("xpath", "..")
    for order, expected in (("descending", sorted(means, reverse=True)), ("ascending", sorted(means)), (None, means)):
        press(opened, button)
        assert head.get_attribute("aria-sort") == order
        assert [text.split(" ")[0] for text in column(opened, 1)] == [f"{m:.2f}" for m in expected]
    press(opened, button)
    find(opened, f"input[name={TABLE}][value=published]").click()
    shown = [float(t.split(" ")[0].replace("−", "-")) for t in column(opened, 1) if "±" in t]
    assert len(shown) >= 2 and shown == sorted(shown, reverse=True)
    assert column(opened, 1)[-1].startswith(("none", "–"))  # without a number: last
    assert opened.get_log("browser") == []


def test_a_cell_shows_its_evidence_and_gives_the_focus_back(opened, sets):
    from selenium.webdriver.common.keys import Keys

    found = sets[0].tables[0]
    i = next(i for i, row in enumerate(found.rows) if row.method == "rkd")
    button = find(opened, f"[data-cell={TABLE}-{i}-1]")
    press(opened, button)
    dialog = find(opened, "#evidence")
    assert dialog.is_displayed()
    text = dialog.text
    cell = found.rows[i].cells[1]
    assert f"{found.rows[i].title} on {found.pairs[1].title}" in text and "diverged: loss is not finite" in text
    for seed, value in cell.values.items():
        assert f"{value:.2f}" in text and f"runs/{cell.runs[seed].id}/record.json" in text
    assert f"Mean of {cell.summary.n} seeds: {cell.summary.mean:.4f}" in text and "Published: 69.61 ± 0.06 (n = 5)" in text
    assert opened.execute_script(CONTRAST) == []
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert opened.switch_to.active_element == button


def test_the_method_header_sorts_by_name(opened, sets):
    titles = [row.title for row in sets[0].tables[0].rows]
    button = opened.find_elements("css selector", f"#{TABLE} button.sort")[0]
    for expected in (sorted(titles, key=str.lower), sorted(titles, key=str.lower, reverse=True), titles):
        press(opened, button)
        assert [text.split("\n")[0] for text in column(opened, 0)] == expected


def test_what_is_open_is_in_the_address(opened, sets):
    find(opened, f"input[name={TABLE}][value=student]").click()
    press(opened, opened.find_elements("css selector", f"#{TABLE} button.sort")[1])
    opened.execute_script("arguments[0].click()", find(opened, f"[data-cell={TABLE}-1-1]"))
    address, order, shown = opened.current_url, column(opened, 0), find(opened, "#evidence").text
    opened.get("about:blank")
    opened.get(address)
    assert column(opened, 0) == order and find(opened, "#evidence").text == shown and shown
    assert find(opened, f"input[name={TABLE}][value=student]").is_selected()
    record = find(opened, "#evidence-runs a").get_attribute("href")
    assert record.endswith("/record.json") and record.startswith(opened.uri.rsplit("/", 2)[0])
    find(opened, "#evidence-close").click()
    assert "cell=" not in opened.current_url
    opened.execute_script("arguments[0].click()", find(opened, "nav.tabs a[href='#nightly']"))
    assert find(opened, "#nightly").is_displayed() and not find(opened, "#set0").is_displayed() and "tab=nightly" in opened.current_url


def test_another_method_stands_out(opened):
    from selenium.webdriver.support.ui import Select

    choice = Select(find(opened, "select.method-pick"))
    choice.select_by_visible_text("RKD")
    marked = opened.execute_script("return [...new Set([...document.querySelectorAll('.figures .hl')].map((e) => e.dataset.m))]")
    assert marked == ["2"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400], ids=["phone", "desktop"])
def test_it_is_accessible(opened, width, dark):
    chrome.look(opened, width, 900, dark)
    assert opened.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert opened.execute_script(FAULTS) == []
    for view in ("mean", "student", "published"):
        opened.execute_script("arguments[0].click()", find(opened, f"input[name={TABLE}][value={view}]"))
        assert opened.execute_script(CONTRAST) == []
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width  # tables scroll in their boxes, the page does not


def test_every_control_can_be_reached_by_key_and_shows_its_focus(opened):
    from selenium.webdriver.common.keys import Keys

    reached, bare = set(), []
    for _ in range(70):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        kind, outline = opened.execute_script(
            "const e = document.activeElement, s = getComputedStyle(e.matches('.choice input') ? e.nextElementSibling : e);"
            "return [e.tagName + '.' + e.className, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2]"
        )
        reached.add(kind)
        if not outline and kind != "BODY.":
            bare.append(kind)
    assert {"A.skip", "INPUT.", "BUTTON.sort", "BUTTON.cell", "DIV.scroll", "SELECT.method-pick"} <= reached
    assert bare == []


def test_paper_shows_no_controls(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not find(opened, ".choice").is_displayed() and find(opened, f"#{TABLE}").is_displayed()
        assert len(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]) > 10_000
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_pictures_for_the_readme_are_small(results, tmp_path):
    shots.main(results, tmp_path)
    for name in shots.NAMES:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) <= shots.LIMIT
