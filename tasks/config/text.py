"""The section `shard.text`: a published text encoder for the captions of the shards."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.config.section import Section


class TextEncoder(Section):
    """A CLIP or T5 text encoder, and what stands for a caption that is missing."""

    source: str = Field(min_length=1)  # a folder: of a pipeline of diffusers, or of the encoder with its tokenizer
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the folder, as `contrapposto text` prints it
    length: int = Field(32, ge=1, le=512)  # tokens of a caption; what is longer is cut off
    template: str = "a photo of a {category}"  # caption of pictures that have none

    @model_validator(mode="after")
    def _template_has_a_category(self) -> TextEncoder:
        check_template(self.template)
        return self


def check_template(template: str) -> None:
    """Raise ValueError if a template of captions has another field than the category."""
    try:
        template.format(category="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"template may have the field {{category}} only, got {template!r}") from error
