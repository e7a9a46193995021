"""FVQA's released caches: what they hold is converted, what they would run is refused by name."""

import io
import os
import pickle
import resource
from collections import OrderedDict, namedtuple

import pytest
from PIL import Image

from mmsr1.tools.bundle.format import Bundle, verify
from mmsr1.tools.bundle.fvqa import import_fvqa
from mmsr1.tools.bundle.rows import call_key
from mmsr1.tools.bundle.unpickle import Refused, read_pickle
from mmsr1.tools.pictures import decode

DIGESTS = {f"fvqa_train_{n}": f"{n:064x}" for n in range(6)}


def photo(kind: str, mode: str = "RGB", size=(40, 30)) -> Image.Image:
    """As it comes from a file, so with what Pillow keeps of it."""
    image = Image.linear_gradient("L").resize(size).convert(mode)
    if mode == "P":
        image = Image.linear_gradient("L").resize(size).convert("RGB").quantize(16)
    data = io.BytesIO()
    image.save(data, kind, **({"dpi": (72, 72)} if kind in ("JPEG", "PNG", "TIFF") else {}))
    data.seek(0)
    return Image.open(data)


def search(titles, shown):
    return {"tool_returned_web_title_list": titles, "tool_returned_images_urls": shown}


def converted(tmp_path, found, protocol=4):
    (tmp_path / "cache.pkl").write_bytes(pickle.dumps(found, protocol))
    done = import_fvqa([tmp_path / "cache.pkl"], DIGESTS, tmp_path / "bundle")
    verify(tmp_path / "bundle")
    return done, Bundle(tmp_path / "bundle")


def row(bundle, number):
    return bundle.find(call_key("image_search", {"image": f"{number:064x}"}))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_titles_addresses_and_pictures_are_converted(tmp_path, protocol):
    url = "https://img.example/a.jpg"
    found = {
        "fvqa_train_0": search(["The tower", "Another"], [url, photo("JPEG")]),
        "fvqa_train_1": search(["Logo"], [photo("PNG", "RGBA")]),
        "fvqa_train_2": search([], []),
        "fvqa_train_3": search(None, None),
        "fvqa_train_9": search(["of nobody"], [url]),
    }
    done, bundle = converted(tmp_path, found, protocol)
    assert done.exported.manifest.rows == 4 and done.left_out == {"searches for questions that are not in the data": 1}
    first, second = row(bundle, 0).result(bundle.picture).items
    assert (first.title, first.url, first.thumbnail) == ("The tower", url, None)
    assert second.title == "Another" and decode(second.thumbnail).size == (40, 30)
    with photo("JPEG") as original:
        assert decode(second.thumbnail).tobytes() == original.convert("RGB").tobytes()
    assert row(bundle, 1).result(bundle.picture).items[0].thumbnail is not None
    assert row(bundle, 2).status == row(bundle, 3).status == "empty"
    assert row(bundle, 0).at is None and bundle.manifest.dates == "at an unknown date"


@pytest.mark.parametrize(
    "picture",
    [photo("PNG", "P"), photo("PNG", "L"), photo("WEBP"), photo("GIF", "P"), photo("TIFF"), photo("BMP")],
    ids=lambda picture: f"{picture.format}-{picture.mode}",
)
def test_pictures_of_any_kind_come_out_as_they_look(tmp_path, picture):
    expected = picture.convert("RGB").tobytes()
    done, bundle = converted(tmp_path, {"fvqa_train_0": search(["x"], [picture])})
    (item,) = row(bundle, 0).result(bundle.picture).items
    assert not done.left_out and decode(item.thumbnail).tobytes() == expected


def test_large_pictures_are_made_small_and_broken_ones_counted(tmp_path):
    broken = photo("PNG")
    broken.load()
    state = list(broken.__getstate__())

    class Forged(Image.Image):
        def __reduce__(self):
            return Image.Image, (), state

    state[2] = (10**6, 10**6)
    done, bundle = converted(
        tmp_path, {"fvqa_train_0": search(["big", "broken"], [photo("JPEG", size=(1000, 500)), Forged()])}
    )
    big, other = row(bundle, 0).result(bundle.picture).items
    assert decode(big.thumbnail).size == (280, 140) and other.thumbnail is None
    assert done.left_out == {"thumbnails that are no pictures": 1}


class Runs:
    def __init__(self, *call):
        self._call = call

    def __reduce__(self):
        return self._call[0], self._call[1:]


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (Runs(os.system, "touch {marker}"), "system"),
        (Runs(eval, "open('{marker}', 'w')"), "eval"),
        (Runs(getattr, os, "getcwd"), "getattr"),
        (Runs(Image.open, "{marker}"), "PIL.Image.open"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (namedtuple, "namedtuple"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_anything_is_refused_by_name(tmp_path, payload, named, protocol):
    marker = tmp_path / "marker"
    if isinstance(payload, Runs):
        payload = Runs(payload._call[0], *(str(a).format(marker=marker) for a in payload._call[1:]))
    file = tmp_path / "cache.pkl"
    file.write_bytes(pickle.dumps({"fvqa_train_0": search([payload], [])}, protocol))
    with pytest.raises(Refused, match=named) as caught:
        import_fvqa([file], DIGESTS, tmp_path / "bundle")
    assert str(file) in str(caught.value) and "refused" in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists() and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR.",  # rebuild what is no picture
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",  # another encoding than old pickles use
        b"cPIL.Image\nImage.open\n.",  # an attribute of what may be named
        b"cPIL.Image\nImage\n(tR(dVimage\nNsb.",  # a picture with a dict for a state
        b"Pexternal\n.",
        b"\x80\x04\x95garbage",
        b"",
        b"PK\x03\x04",
    ],
)
def test_pickles_written_by_hand_do_no_harm(tmp_path, code):
    file = tmp_path / "cache.pkl"
    file.write_bytes(code)
    try:
        found = read_pickle(file)
    except Refused as error:
        assert "\n" not in str(error)
    else:
        with pytest.raises(ValueError, match="without pixels"):
            found.image()


@pytest.mark.parametrize("found", [[1, 2], {"fvqa_train_0": "x"}, "text"])
def test_another_structure_is_told(tmp_path, found):
    with pytest.raises(Refused, match="not a dict of searches"):
        converted(tmp_path, found)


def test_a_cache_for_other_questions_is_told(tmp_path):
    with pytest.raises(ValueError, match="none of its searches belongs to a question of the data"):
        converted(tmp_path, {"other_1": search(["x"], [])})


def test_a_small_pickle_takes_little_memory(tmp_path):
    """Nine bytes that ask for room for 2^26 memos: the unpickler in C would take a gigabyte."""
    (tmp_path / "cache.pkl").write_bytes(b"\x80\x02}r" + (2**26).to_bytes(4, "little") + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_pickle(tmp_path / "cache.pkl") == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
