"""All that a run may train on, and what becomes of it once it is prepared."""

from onefold.data.pictures.images import ImageData, ImageDataset
from onefold.data.proteins.masked import ProteinData
from onefold.data.sequences.sequences import SequenceData
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.preferences import PreferenceData, PreferenceDataset
from onefold.data.text.dataset import Dataset
from onefold.data.text.denoising import DenoisingTextData
from onefold.data.text.documents import TextData
from onefold.data.text.labelled.text import LabelledTextData, LabelledTextDataset
from onefold.data.text.masked import MaskedTextData
from onefold.data.text.pairs.contrastive import ContrastiveDataset, ContrastiveTextData
from onefold.data.text.pairs.mixture import MixtureData, MixtureDataset
from onefold.data.text.pairs.text_pairs import TextPairsData, TextPairsDataset
from onefold.data.text.prefix_text import PrefixTextData

AnyData = (
    TextData
    | PrefixTextData
    | MaskedTextData
    | ProteinData
    | DenoisingTextData
    | TextPairsData
    | MixtureData
    | LabelledTextData
    | SequenceData
    | ChatData
    | ContrastiveTextData
    | PreferenceData
    | ImageData
)
Prepared = (
    Dataset
    | TextPairsDataset
    | MixtureDataset
    | LabelledTextDataset
    | ContrastiveDataset
    | PreferenceDataset
    | ImageDataset
)
