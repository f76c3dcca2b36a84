"""The built book, as files and as a reader sees it in Chromium. `make test` builds it first."""

import functools
import gzip
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from two_runs import disagreements, made_alike

import unmask
from unmask.findings import connectivity
from unmask.verdicts import all_verdicts, restricted

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "build/_build/html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]

FINDINGS = [f"notebooks/{number:02d}" for number in range(1, 7)]

every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(autouse=True)
def built():
    missing = [page for page in PAGES if not html_file(page).exists()]
    if missing:
        pytest.fail(
            f"the book is not built ({missing[0]} is missing): run `make book`", pytrace=False
        )


def html_file(page):
    return HTML / f"{page}.html"


@functools.cache
def parsed(path):
    return BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def ids(path):
    return {tag["id"] for tag in parsed(path).select("[id]")}


def source(page):
    """The page's source, as a path of the repository."""
    return f"{page}.ipynb" if (ROOT / f"{page}.ipynb").exists() else f"{page}.md"


# --- as files


@every_page
def test_links_within_the_book_resolve(page):
    broken = []
    for link in parsed(html_file(page)).select("a[href]"):
        url = urlsplit(link["href"])
        if url.scheme or url.netloc:
            continue
        path = html_file(page)
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        within = url.fragment and target.suffix == ".html"
        if not target.is_file() or (within and unquote(url.fragment) not in ids(target)):
            broken.append(link["href"])
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if source(page).endswith(".ipynb")])
def test_executed_notebooks_show_their_verdicts_and_no_warning(page):
    cells = nbformat.read(ROOT / f"build/src/{page}.ipynb", 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    stderr = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not any("Warning" in text for text in stderr), stderr
    judged = not page.endswith(("06_error_landscape", "scale"))  # a picture decides nothing
    assert judged == any('class="statistic"' in str(output.get("data")) for output in outputs)


@every_page
def test_images_exist_and_are_described(page):
    for image in parsed(html_file(page)).select("img"):
        assert (html_file(page).parent / image["src"]).is_file(), image
        assert image.get("alt", "").strip(), image
        assert not re.search(r"\.(png|svg|jpe?g)$", image["alt"]), image  # the name of a file


@every_page
def test_figures_of_notebooks_have_captions(page):
    for image in parsed(html_file(page)).select(".cell_output img"):
        figure = image.find_parent("figure")
        caption = figure and figure.find("figcaption")
        assert caption and caption.get_text(strip=True), image
        assert caption.find("a", href=image["src"]), image


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/0")])
def test_figures_of_findings_lead_to_the_tables_they_are_drawn_from(page):
    captions = parsed(html_file(page)).select("figcaption:has(a[href*='unmask.findings.'])")
    assert captions
    for caption in captions:
        for link in (tables := caption.select("a[href$='.csv']")):
            header = (html_file(page).parent / link["href"]).read_text().partition("\n")[0]
            assert header.startswith("seed,")
        assert tables, caption


@pytest.mark.parametrize("page", [page for page in PAGES if page[:12] in FINDINGS])
def test_pages_of_findings_show_how_it_is_measured(page):
    code = parsed(html_file(page)).select(".cell_output .highlight-python pre")
    assert code and all(block.select_one("span.nf, span.nd") for block in code)  # highlighted
    assert not any(block.find_parent("details") for block in code)  # unfolded


@every_page
def test_no_sentence_shows_a_number_that_is_none(page):
    sentences = parsed(html_file(page)).select("article p, article li, article figcaption")
    assert not [text for part in sentences if re.search(r"\bnan\b", text := part.get_text())]


@every_page
def test_nothing_is_loaded_from_the_network(page):
    tags = "script", "img", "iframe", "source", "video", "audio", "embed"
    loads = dict.fromkeys(tags, "src") | {"object": "data"}
    html = parsed(html_file(page))
    urls = [tag.get(loads[tag.name], "") for tag in html.find_all(list(loads))]
    urls += [
        tag["href"]
        for tag in html.find_all("link", href=True)
        if {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}
        & set(tag.get("rel", []))
    ]
    assert not [url for url in urls if urlsplit(url).netloc]


def test_no_stylesheet_loads_from_the_network():
    remote = re.compile(r"""@import\s+(url\()?["']?(https?:)?//|url\(\s*["']?(https?:)?//""")
    assert not [path.name for path in HTML.rglob("*.css") if remote.search(path.read_text())]


@every_page
def test_a_page_weighs_less_than_three_megabytes(page):
    """As a web server sends it, compressed; its fonts aside."""
    loaded = parsed(html_file(page)).select("script[src], img[src], link[rel=stylesheet]")
    urls = {urlsplit(tag.get("src") or tag["href"]).path for tag in loaded}
    files = [html_file(page), *(html_file(page).parent / unquote(url) for url in urls)]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < 3e6


@every_page
def test_buttons_lead_to_the_page_s_source(page):
    assert (ROOT / source(page)).exists()
    links = [
        link["href"] for link in parsed(html_file(page)).select(".article-header-buttons a[href]")
    ]
    targets = [
        match[1]
        for link in links
        if (match := re.search(r"(?:/edit/main/|/blob/main/|urlpath=lab/tree/)(.*)", link))
    ]
    downloads = [link.partition("_sources/")[2] for link in links if "_sources/" in link]
    assert targets == [source(page)] * (
        3 if source(page).endswith(".ipynb") else 1
    )  # Binder, Colab; edit
    assert downloads == [source(page)]


def test_what_was_computed_agrees_with_what_is_published():
    """`make book` computes seeds that are published: on the processor and versions that these come
    from, every seed's number is the same to the bit; elsewhere as `disagreements` says."""
    known, there, provenance = unmask.published("miniature")
    e = unmask.experiment("miniature_short")
    here = unmask.measure(e, [name for name in unmask.tables.known_tables() if name in there])
    part = restricted(there, here)
    same = made_alike(provenance)
    ours, theirs = all_verdicts(here, e), all_verdicts(part, e)
    assert len(ours.evidence) == len(theirs.evidence) > 0
    assert disagreements(ours, theirs, same, all_verdicts(there, known)) == []


# --- as a reader sees it


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("no Chromium: install one of " + ", ".join(names))
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A browser tab that notes in `tab.complaints` whatever goes wrong in it."""

    def note(what, url=""):
        # The last theme for Python 3.10 asks for icon fonts early, which file:// forbids, and draws
        # icons without them.
        if "/webfonts/fa-" not in what + url:
            tab.complaints.append(f"{what} {url}".strip())

    def console(message):
        if message.type == "error":
            note(message.text, message.location["url"])

    def request(asked):
        if not asked.url.startswith(("file:", "data:", "blob:")):
            note("from the network:", asked.url)

    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    tab.complaints = []
    tab.on("console", console)
    tab.on("pageerror", lambda error: note(str(error)))
    tab.on("requestfailed", lambda asked: note("failed:", asked.url))
    tab.on("request", request)
    yield tab
    tab.close()


MISSING_IMAGES = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"

UNRENDERED_MATH = r"""() => {
    const raw = [...document.querySelectorAll(".math")].filter(
        e => !e.querySelector("mjx-container"));
    const wrong = [...document.querySelectorAll("mjx-merror, [data-mjx-error]")];
    const article = document.querySelector("article");
    const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
    const left = [];
    while (walker.nextNode()) {
        const {data, parentElement} = walker.currentNode;
        if (/\\\(|\\\[|\$\$/.test(data) && !parentElement.closest("pre, code, script"))
            left.push(parentElement);
    }
    return [...raw, ...wrong, ...left].map(e => e.outerHTML.slice(0, 200));
}"""

# Wide tables and code may scroll within themselves; nothing else may stick out of the window.
STICKING_OUT = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = e => e && e !== document.body &&
        (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const wide = [...document.querySelectorAll("article, article *")].filter(
        e => e.checkVisibility() && e.getBoundingClientRect().right > width + 1
             && !e.closest("mjx-assistive-mml") && !scrolls(e.parentElement) && !scrolls(e));
    const page = document.documentElement.scrollWidth > width ? [document.body] : [];
    return [...page, ...wide].map(e => e.outerHTML.slice(0, 200));
}"""

# A keyboard stops at an equation only where there is something to do: to scroll.
IDLE_STOPS = """[...document.querySelectorAll("mjx-container[tabindex='0']")].filter(
    e => e.scrollWidth <= e.clientWidth).map(e => e.outerHTML.slice(0, 200))"""

WCAG = [f"wcag{version}{level}" for version in ("2", "21", "22") for level in ("a", "aa")]


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
@every_page
def test_a_reader_sees_all_of_the_page(tab, page, scheme, width):
    """Also one who needs WCAG to be kept to, as far as axe-core can tell."""
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(html_file(page).as_uri())
    tab.evaluate("window.MathJax && MathJax.startup.promise")
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    assert tab.evaluate(MISSING_IMAGES) == []
    assert tab.evaluate(UNRENDERED_MATH) == []
    assert tab.evaluate(STICKING_OUT) == []
    quick = {"preload": False, "resultTypes": ["violations"]}
    alike = {"exclude": [["dl.py ~ dl.py ~ dl.py"]]}  # all but a few functions of the API's page
    found = Axe().run(tab, context=alike, options={"runOnly": WCAG, **quick})
    assert found.response["passes"]
    assert found.violations_count == 0, found.generate_report()
    assert tab.evaluate(IDLE_STOPS) == []
    assert tab.complaints == []


TOPS = """() => {
    const top = where => Math.min(...[...document.querySelectorAll(where)].filter(
        e => e.checkVisibility()).map(e => e.getBoundingClientRect().top));
    return ["h1", "p", "figure", "details, article .cell_input"].map(
        what => top("article " + what));
}"""


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/0")])
def test_a_page_answers_first(tab, page):
    """The question, the answer, the figure that shows it; code after it, in bars that name it."""
    article = parsed(html_file(page)).select_one("article")
    assert article.h1.get_text().rstrip("#").endswith("?")
    assert article.p.get_text().startswith("The answer. ")
    bars = [bar.get_text().strip() for bar in article.select(".cell summary .collapsed")]
    assert bars and all(re.match(r"(Table and c|C)ode: \w+\.\w+", bar) for bar in bars)
    tab.goto(html_file(page).as_uri())
    tops = tab.evaluate(TOPS)
    assert tops == sorted(tops) and len(set(tops)) == 4


EXPLORER = HTML / "notebooks/02_linear_connectivity.html"


def test_the_chart_follows_its_controls_and_clicks(tab):
    """What it says of each choice is what the published tables say."""
    known, tables, _ = unmask.published("miniature")
    rows = connectivity.explorer(tables, known)[connectivity.VEGA_LITE]["data"]["values"]
    words = {(row["seed"], row["rewind_step"], row["level"]): row["words"] for row in rows}
    tab.goto(EXPLORER.as_uri())
    figure = tab.locator("#fig-explorer")

    def says(*choice):
        return figure.locator("svg").get_by_text("".join(words[choice]), exact=True).wait_for()

    says(known.first_seed, known.earliest, known.levels // 2)
    figure.get_by_label("Rewound to step").select_option(str(known.latest))
    figure.locator("form").get_by_label("Seed").select_option("7")
    figure.locator("form").get_by_label("Level").press("Home")
    says(7, known.latest, 0)
    figure.locator("form").get_by_label("Level").press("ArrowRight")
    says(7, known.latest, 1)
    figure.locator("svg .dots_marks path").last.click()
    says(known.all_seeds[-1], known.latest, known.levels - 1)
    assert tab.complaints == []


def test_without_scripts_and_on_paper_the_chart_is_a_picture(browser, tab):
    still = browser.new_page(java_script_enabled=False)
    still.goto(EXPLORER.as_uri())
    picture = still.locator("#fig-explorer img")
    assert picture.is_visible() and picture.bounding_box()["height"] > 200
    still.close()
    tab.goto(EXPLORER.as_uri())
    tab.locator("#fig-explorer select").first.wait_for()
    tab.emulate_media(media="print")
    assert tab.locator("#fig-explorer svg").is_visible()
    assert not tab.locator("#fig-explorer form").is_visible()


def test_the_front_page_is_the_introduction(tab):
    tab.goto((HTML / "index.html").as_uri())
    tab.wait_for_url(html_file(PAGES[0]).as_uri())


def test_search_finds_a_word(tab):
    """Excerpts of the results need a web server, so only their titles are looked at."""
    tab.goto((HTML / "search.html").as_uri() + "?q=barrier")
    tab.wait_for_selector("#search-results li a")
    titles = tab.locator("#search-results li a").all_inner_texts()
    assert any("Definitions" in title or "barrier" in title for title in titles), titles
