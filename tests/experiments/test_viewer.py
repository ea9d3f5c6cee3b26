"""The attention viewer: its data is what was given; in a real browser it shows what the maps say.

The browser tests need Chromium or Chrome on the path and the playwright package; without them they
are skipped, except under continuous integration (``CI`` set), where they fail.
"""

import base64
import json
import re

import numpy as np
import pytest

from experiments.viewer import NO_SOURCE, NOT_A_NUMBER, Answer, Example, quantise, render, visible

LAYERS, HEADS, LENGTH = 2, 3, 19
AWKWARD = [
    "</script><script>document.title='broken'</script>",
    "{{program}}",
    " ",
    "\n",
    "&lt;",
    "",
]


def random_maps(seed, layers=LAYERS, heads=HEADS, length=LENGTH):
    scores = np.random.default_rng(seed).normal(size=(layers, heads, length, length))
    weights = np.exp(3 * scores) * np.tril(np.ones((length, length)))
    return weights / weights.sum(-1, keepdims=True)


def make_example(label="attention", seed=0, carried=1, **shape):
    maps = random_maps(seed, **shape)
    tokens = [chr(ord("a") + i % 26) for i in range(maps.shape[-1])]
    tokens[: len(AWKWARD)] = AWKWARD
    answers = [
        Answer(11, NO_SOURCE, 1, "x", "x", right=True),
        Answer(13, 7, 2, "y", "z", right=False),
        Answer(16, 2, 1, *"qq", right=True),
    ]
    return Example(label, tokens, answers, maps, carried)


def data_of(html):
    return json.loads(re.search(r'data-part="data">(.*?)</script>', html, re.DOTALL)[1])


def test_data_is_what_was_given():
    example = make_example()
    (data,) = data_of(render([example]))
    levels = np.frombuffer(base64.b64decode(data["levels"]), np.uint8).reshape(example.maps.shape)
    np.testing.assert_allclose((levels / 254.0) ** 2, example.maps, atol=0.004)
    assert data["tokens"][6:] == list(example.tokens[6:])
    assert [answer["right"] for answer in data["answers"]] == [True, False, True]


def test_quantising_keeps_order_and_marks_what_is_not_finite():
    weights = np.array([0.0, 1 / 4096, 1 / 256, 0.3, 1.0, 1.004, np.nan, np.inf])
    levels = quantise(weights)
    assert levels.tolist() == [0, 4, 16, 139, 254, 254, NOT_A_NUMBER, NOT_A_NUMBER]


@pytest.mark.parametrize(
    ("token", "printed"),
    [
        (" ", "␣"),
        ("\n", "⏎"),
        ("a\tb", "a⇥b"),
        ("", "∅"),
        ("\x00", "\\x00"),
        ("<", "<"),
        ("é", "é"),
    ],
)
def test_every_token_can_be_seen(token, printed):
    assert visible(token) == printed


def test_a_token_cannot_end_the_script_that_holds_it():
    html = render([make_example()])
    assert html.count("</script>") == 2
    assert data_of(html)[0]["tokens"][0] == AWKWARD[0]


def test_nothing_is_fetched_from_elsewhere():
    assert not re.search(r"https?://|@import|url\(|src=|href=", render([make_example()]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": random_maps(0, length=18)}, "19 tokens need maps"),
        ({"maps": random_maps(0)[0]}, "19 tokens need maps"),
        ({"maps": -random_maps(0)}, "weights are in 0..1"),
        ({"maps": 100 * random_maps(0)}, "weights are in 0..1"),
        ({"answers": [Answer(19, 1, 1, "x", "x", True)]}, "outside a row of 19"),
        ({"answers": [Answer(9, 1, 3, "x", "x", True)]}, "outside a row of 19"),
        ({"answers": [Answer(9, 19, 1, "x", "x", True)]}, "outside a row of 19"),
        ({"answers": [Answer(9, -2, 1, "x", "x", True)]}, "outside a row of 19"),
    ],
)
def test_an_example_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        render([make_example()._replace(**change)])


def test_a_viewer_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        render([])


@pytest.fixture
def open_page(open_file, tmp_path):
    """Returns a function that opens fragments as a file."""

    def show(*fragments, **settings):
        file = tmp_path / "page.html"
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>viewer</title>'
        file.write_text(head + "".join(fragments), encoding="utf-8")
        return open_file(file, **settings)

    return show


def state(section):
    return section.evaluate("section => ({...section.dataset})")


def shown(section):
    """Returns layer, head, query and top key that the section says it shows."""
    data = state(section)
    return tuple(int(data[name]) for name in ("layer", "head", "query", "topKey"))


def sections(page):
    return page.locator(".attention-viewer")


def token(section, position):
    return section.locator(f'.token[data-position="{position}"]')


def cell(section, query, key, within=0.5):
    """Returns where on the canvas a cell of the map is, or a place ``within`` it."""
    plot = json.loads(section.locator("figure canvas").get_attribute("data-plot"))
    return {
        "x": plot["left"] + (key + within) * plot["cell"],
        "y": plot["top"] + (query + within) * plot["cell"],
    }


def test_opens_on_a_question_with_a_source_in_the_head_that_finds_it(open_page):
    example = make_example()
    section = sections(open_page(render([example])))
    data = state(section)
    # Positions 6 and 7 are the source of 13, 8 is where it is carried; 2 and 3 those of 16.
    mass = (example.maps[..., 13, 6:9].sum(-1) + example.maps[..., 16, 2:4].sum(-1)) / 2
    layer, head = np.unravel_index(mass.argmax(), mass.shape)
    assert shown(section) == (layer, head, 13, example.maps[layer, head, 13].argmax())
    assert data["source"] == "6-7"
    expected = example.maps[layer, head, 13, 6:9].sum()
    assert float(data["sourceWeight"]) == pytest.approx(expected, abs=0.015)
    assert [token(section, i).get_attribute("data-source") for i in range(5, 10)] == [
        None,
        "true",
        "true",
        "carried",
        None,
    ]
    facts = section.locator(".facts").inner_text()
    assert re.search(r"Answer\s+y\s+Model says\s+z ✗ wrong", facts)


def test_awkward_tokens_are_printed_and_not_run(open_page):
    page = open_page(render([make_example()]))
    texts = sections(page).locator(".token").all_text_contents()
    assert texts[: len(AWKWARD)] == [AWKWARD[0], "{{program}}", "␣", "⏎", "&lt;", "∅"]
    assert page.title() == "viewer"


def test_pointing_shows_where_a_query_looks_and_leaving_returns(open_page):
    example = make_example()
    page = open_page(render([example]))
    section = sections(page)
    layer, head, before, _ = shown(section)
    for query in (18, 4, 9):
        token(section, query).hover()
        weights = example.maps[layer, head, query]
        assert shown(section) == (layer, head, query, weights.argmax())
        listed = section.locator("li").evaluate_all("items => items.map(i => +i.dataset.key)")
        assert listed == np.argsort(-weights)[: len(listed)].tolist()
        assert len(listed) == min(5, query + 1)
    section.locator("select").first.hover()
    assert shown(section)[2] == before
    token(section, 4).click()
    section.locator("select").first.hover()
    assert shown(section)[2] == 4


def test_pointing_at_the_map_is_pointing_at_its_query(open_page):
    example = make_example()
    section = sections(open_page(render([example])))
    layer, head, *_ = shown(section)
    canvas = section.locator("figure canvas")
    # Near the edges of cells, where a margin forgotten would be the next cell.
    for query, key, within in ((0, 0, 0.1), (12, 3, 0.9), (18, 18, 0.9), (9, 4, 0.1)):
        canvas.hover(position=cell(section, query, key, within))
        assert shown(section) == (layer, head, query, example.maps[layer, head, query].argmax())
        assert f"position {key} " in section.locator('[data-part="rest"]').inner_text()
    canvas.click(position=cell(section, 5, 2))
    section.locator("select").first.hover()
    assert shown(section)[2] == 5


def test_layer_and_head_can_be_chosen_in_two_ways(open_page):
    example = make_example()
    section = sections(open_page(render([example])))
    section.locator('[data-part="layer"]').select_option(label="2")
    section.locator('[data-part="head"]').select_option(label="3")
    assert shown(section) == (1, 2, 13, example.maps[1, 2, 13].argmax())
    section.locator('button[data-layer="0"][data-head="1"]').click()
    assert shown(section) == (0, 1, 13, example.maps[0, 1, 13].argmax())
    assert section.locator('[data-part="layer"]').input_value() == "0"


def test_the_source_is_boxed_in_orange_on_the_map_too(open_page):
    section = sections(open_page(render([make_example()]), color_scheme="light"))
    canvas = section.locator("figure canvas")

    def orange(query, key):
        point = cell(section, query, key)
        place = [point["x"], point["y"]]
        return canvas.evaluate(
            """(canvas, [x, y]) => {
                const ratio = canvas.width / parseFloat(canvas.style.width), r = 16;
                const copy = document.createElement("canvas").getContext("2d");
                Object.assign(copy.canvas, { width: canvas.width, height: canvas.height });
                copy.drawImage(canvas, 0, 0);
                const [left, top, size] = [x - r, y - r, 2 * r].map((v) => v * ratio);
                const pixels = copy.getImageData(left, top, size, size);
                let count = 0;
                for (let i = 0; i < pixels.data.length; i += 4)
                    count += pixels.data[i] === 213 && pixels.data[i + 1] === 94;
                return count;
            }""",
            place,
        )

    assert orange(13, 7) > 20
    assert orange(4, 15) == 0


def test_keyboard_alone_is_enough(open_page):
    page = open_page(render([make_example()]))
    section = sections(page)
    token(section, 13).focus()
    for key, query in (
        ("ArrowRight", 14),
        ("ArrowLeft", 13),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", 18),
    ):
        page.keyboard.press(key)
        assert shown(section)[2] == query
        assert page.evaluate("document.activeElement.dataset.position") == str(query)
    assert section.locator('.token[tabindex="0"]').count() == 1
    section.locator('[data-part="next"]').press("Enter")
    assert shown(section)[2] == 11
    section.locator('[data-part="next"]').press("Enter")
    assert shown(section)[2] == 13
    section.locator('[data-part="previous"]').press("Enter")
    assert shown(section)[2] == 11
    section.locator('[data-part="head"]').focus()
    before = shown(section)[1]
    page.keyboard.press("ArrowDown" if before < HEADS - 1 else "ArrowUp")
    assert shown(section)[1] != before


def test_viewers_on_one_page_are_independent(open_page):
    other = make_example("long", seed=1, layers=1, heads=1, length=40)
    page = open_page(render([make_example(), other]), render([other]))
    first, second = sections(page).all()
    token(second, 30).click()
    assert shown(first)[2] == 13
    assert shown(second)[2:] == (30, other.maps[0, 0, 30].argmax())
    first.locator('[data-part="example"]').select_option(label="long")
    assert shown(first) == (0, 0, 13, other.maps[0, 0, 13].argmax())


def test_a_diverged_model_is_said_to_be_one(open_page):
    maps = random_maps(0)
    maps[:, :, 13] = np.nan
    section = sections(open_page(render([make_example()._replace(maps=maps)])))
    assert state(section)["topKey"] == ""
    assert section.locator("text=the model has diverged").is_visible()
    assert "not numbers" in section.locator(".headline").inner_text()


def test_a_row_without_questions_opens_on_its_last_token(open_page):
    section = sections(open_page(render([make_example()._replace(answers=[])])))
    assert shown(section)[2] == LENGTH - 1
    assert "nothing asked" in section.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 400, 1400])
def test_long_rows_fit_every_width(open_page, width, scheme):
    example = make_example("long", layers=1, heads=8, length=256)
    page = open_page(
        render([example]), viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    section = sections(page)
    right = section.evaluate("section => section.getBoundingClientRect().right")
    for part in section.locator("canvas, .readout, .tokens, select").all():
        box = part.bounding_box()
        assert box["x"] + box["width"] <= right
    token(section, 250).click()
    assert shown(section)[2] == 250


def test_touch_chooses(open_page):
    page = open_page(render([make_example()]), has_touch=True)
    section = sections(page)
    token(section, 9).tap()
    assert shown(section)[2] == 9
