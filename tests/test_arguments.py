"""Options of a network as a text: read, checked against a signature, and made comparable."""

import re
from typing import Any, Literal

import pytest

from drnet_jax.config import ConfigError
from drnet_jax.models.arguments import canonical_arguments, parse_arguments
from drnet_jax.models.backbone import register
from drnet_jax.models.create import check_model, create_model
from tests.small_run import small_config


def build(
    num_classes: int,
    *,
    width: int = 8,
    scale: float = 1.0,
    stem: Literal["large", "small"] = "large",
    sizes: tuple[int, ...] = (1, 1),
    deep: bool = False,
    name: str = "",
) -> Any:
    """A builder with an option of every type."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  ", {}),
        ("width=16", {"width": 16}),
        ("stem='small', width=16,", {"stem": "small", "width": 16}),
        ("stem=small , deep=True", {"stem": "small", "deep": True}),
        ("sizes=(1, 2, 3)", {"sizes": (1, 2, 3)}),
        ("sizes=[4]", {"sizes": (4,)}),
        ("scale=2", {"scale": 2.0}),
        ("scale=-0.5, name='a, b=c'", {"scale": -0.5, "name": "a, b=c"}),
    ],
)
def test_what_is_read(text: str, expected: dict[str, Any]) -> None:
    found = parse_arguments(text, build)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("widht=2", "there is no widht"),
        ("widht=2, hight=3", "there is no widht and no hight"),
        ("num_classes=2", "there is no num_classes"),
        ("16", "16 has no keyword"),
        ("**other", "other has no keyword"),
        ("width=1, width=2", "width is given twice"),
        ("width", "width has no keyword"),
        ("width=", "cannot be read as keyword=value"),
        ("width=8)", "cannot be read as keyword=value"),
        ("width=8) + f(width=9", "cannot be read as keyword=value"),
        ("width=8)(width=9", "cannot be read as keyword=value"),
        ("width=16) # stem='small'", "cannot be read as keyword=value"),
        ("width=16 # stem='small'", "it has a comment"),
        ("width={[]: 1}", "is neither a literal nor a word"),
        (f"scale=1{400 * '0'}", "scale is too large"),
        ("width=\0", "cannot be read as keyword=value"),
        ("width=__import__('os').getpid()", "is neither a literal nor a word"),
        ("width=2 * 8", "width=2 * 8 is neither a literal nor a word"),
        ("width='8'", "width='8' must be of type int"),
        ("width=8.0", "width=8.0 must be of type int"),
        ("width=True", "width=True must be of type int"),
        ("width=None", "width=None must be of type int"),
        ("deep=1", "deep=1 must be of type bool"),
        ("stem=big", "stem='big' must be one of 'large', 'small'"),
        ("sizes=2", "sizes=2 must be of type tuple[int, ...]"),
        ("sizes=(1, 'a')", "sizes='a' must be of type int"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_arguments(text, build)


def test_order_spaces_and_defaults_do_not_count() -> None:
    texts = ("stem='small', width=16", "width=16,stem=small", "deep=False, width=16, stem=small")
    assert {canonical_arguments(text, build) for text in texts} == {"width=16, stem='small'"}
    assert canonical_arguments("width=8, scale=1, sizes=[1, 1]", build) == ""


def test_every_option_of_a_builder_can_be_left_out_and_given() -> None:
    def needed(num_classes: int, *, width: int) -> Any: ...

    def positional(num_classes: int, width: int = 1) -> Any: ...

    def typeless(num_classes: int, *, table: dict[str, int] | None = None) -> Any: ...

    def fractional(num_classes: int, *, width: int = 1.5) -> Any: ...

    sizes: Any = [1]

    def listed(num_classes: int, *, sizes: tuple[int, ...] = sizes) -> Any: ...

    for builder, words in (
        (needed, "width of .* with a default"),
        (positional, "width of .* keyword-only"),
        (typeless, "table is a .*: use bool, int"),
        (fractional, "width=1.5 must be of type int"),
        (listed, "sizes of .* is of another type"),
    ):
        with pytest.raises(TypeError, match=words):
            register("refused")(builder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model.name": "mobilenetv2", "model.args": "width=4, stem='small'"},
            "model.args=\"width=4, stem='small'\" does not fit mobilenetv2: there is no width and "
            'no stem. It takes width_multiplier=1.0, tensorflow=False; give --config.model.args=""',
        ),
        (
            {"model.name": "resnet10", "model.args": "width=0"},
            'model.args="width=0" does not fit resnet10: width=0 must be above zero. It takes '
            "width=64, stem='imagenet', zero_init_residual=False;",
        ),
        ({"model.args": "stem=big"}, "stem='big' must be one of 'imagenet', 'small'. It takes"),
        (
            {"predictor.args": "stage_sizes=()"},
            'predictor.args="stage_sizes=()" does not fit resnet: stage_sizes=() must be above',
        ),
        ({"predictor.args": "stage_sizes=(1, 0)"}, "stage_sizes=(1, 0) must be above zero"),
        (
            {"predictor.name": "efficientnet_lite0", "predictor.args": "width_multiplier=1e999"},
            "width_multiplier=inf must be above zero",
        ),
    ],
)
def test_arguments_that_do_not_fit_a_network(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_model(small_config(**fields))


def test_arguments_reach_the_network() -> None:
    fields = {"model.args": "width=6, stem=small, zero_init_residual=True"}
    fields |= {"predictor.name": "mobilenetv2", "predictor.args": "width_multiplier=0.5"}
    model = create_model(small_config(**fields), 10)
    classifier: Any = model.classifier
    assert (classifier.width, classifier.stem, classifier.zero_init_residual) == (6, "small", True)
    assert model.predictor is not None
    network: Any = model.predictor.network
    assert network.width_multiplier == 0.5 and not network.resolution_aware
