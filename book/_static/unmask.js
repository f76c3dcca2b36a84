// What is wider than the window scrolls within itself: by keyboard, too.
async function stopAtWhatScrolls() {
    await window.MathJax?.startup?.promise;
    for (const e of document.querySelectorAll("article :is(table, mjx-container)"))
        if (e.scrollWidth > e.clientWidth) e.tabIndex = 0;
        else e.removeAttribute("tabindex");
}
addEventListener("load", stopAtWhatScrolls);
addEventListener("resize", stopAtWhatScrolls);
