"""Projections other than one matrix a head: shared, merged, or mixed between heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection
from regard.projections.fewer import FewerMatrices as FewerMatrices  # its place in 0.1


@published(
    "multi_query",
    family="scored",
    kind="projection",
    row=181,
    title="Fast Transformer Decoding: One Write-Head is All You Need",
    arxiv="1911.02150",
    year=2019,
    aliases=("mqa",),
    fidelity="third-party code",
    claim=(
        Claim(
            (
                "one key and one value head for all queries: the cache is 1 / h of multi-head attention's; "
                "heads that are equal convert without a change"
            ),
            cells="projections.multi_query",
            holds="projections.caches_one_head",
        ),
        Claim(
            "it decodes at least 1.5 times as fast at 4,096 tokens and a batch of eight",
            cells="projections.decoding",
            holds="common.at_least(figure=ratio, least=1.5, said='speed over multi-head attention', form='.1f')",
        ),
        Claim(
            "a small language model of equal parameters loses at most 3%",
            cells="small_lm.beside(layers='softmax*2', kv_heads=1)",
            holds="small_lm.loss_at_most(ratio=1.03)",
        ),
    ),
)
@shown_by(lambda: [grouped_sample(kv_heads) for kv_heads in (1, 2)])
def to_groups(projection: Grouped, kv_heads: int = 1) -> Grouped:
    """A projection with fewer key and value heads, each the mean of those that it stands for; 1 is multi-query.

    Papers: Shazeer, arXiv 1911.02150; the mean: Ainslie et al., 2305.13245.

    Raises:
        ValueError: ``kv_heads`` does not divide the projection's.
    """
    p = projection
    if kv_heads < 1 or p.kv_heads % kv_heads:
        raise wrong("kv_heads", str(kv_heads), f"a divisor of the {p.kv_heads} key and value heads")
    found = Grouped(replace(p.sizes, kv_heads=kv_heads)).to(p.q.weight)
    with torch.no_grad():
        found.q.weight.copy_(p.q.weight)
        found.out.weight.copy_(p.out.weight)
        for name, size in (("k", p.head_dim), ("v", p.value_dim)):
            whole = getattr(p, name).weight.view(kv_heads, p.kv_heads // kv_heads, size, p.width)
            getattr(found, name).weight.copy_(whole.mean(1).flatten(0, 1))
    return found


def grouped_sample(kv_heads: int) -> Sample:
    """Four equal key heads made ``kv_heads``, which computes the same."""
    whole = Grouped(Sizes(13, 4, 4, 5, 7))
    with torch.no_grad():
        for name, size in (("k", 5), ("v", 7)):
            matrix = getattr(whole, name).weight
            matrix.copy_(matrix[:size].repeat(4, 1))
    return Sample(f"4 heads over {kv_heads}", to_groups(whole, kv_heads), {"equals": whole})


@published(
    "head_embeddings",
    family="scored",
    kind="projection",
    row=184,
    title="Pit One Against Many: Leveraging Attention-head Embeddings for Parameter-efficient Multi-head Attention",
    arxiv="2310.07911",
    year=2023,
    aliases=("mhe",),
    fidelity="hand values",
    claim=(
        Claim(
            "one projection for all heads and 3 h d more parameters; equal embeddings make equal heads",
            cells="projections.embeddings",
            holds="projections.are_few",
        ),
        Claim(
            ("a small language model tells at least 95% as many next characters as with multi-head attention"),
            cells="projections.embedded_models",
            holds="projections.tells_as_many_characters",
        ),
        Claim(
            "texts are classified at least 95% as well",
            cells="projections.on_long_texts",
            holds="projections.keeps_most(forms='add multiply')",
        ),
    ),
)
class HeadEmbeddings(Projection):
    """One query, key and value projection that all heads share, told apart by an embedding of each head.

        add: q_h = x W^Q + e^Q_h,   multiply: q_h = x W^Q ⊙ (1 + e^Q_h);   k and v alike

    Parameters: width (2 d + e) + h (2 d + e) + h e width.

    Paper: Xue and Aletras, arXiv 2310.07911.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, value_dim: int, form: Literal["add", "multiply"] = "multiply"
    ) -> None:
        super().__init__(Sizes(width, heads, heads, head_dim, value_dim))
        if form not in ("add", "multiply"):
            raise wrong("form", repr(form), "add or multiply")
        self.form = form
        outputs = (head_dim, head_dim, value_dim)
        self.maps = nn.ModuleList(nn.Linear(width, size, bias=False) for size in outputs)
        self.embeddings = nn.ParameterList(nn.Parameter(0.1 * torch.randn(heads, size)) for size in outputs)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.told_apart(i, source) for i, source in enumerate((x, context, context)))
        return q, k, v

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Among them embeddings of zero, with which all heads are one."""
        alike, plain = cls(13, 3, 5, 7), Grouped(Sizes(13, 3, 1, 5, 7))
        with torch.no_grad():
            for embedding in alike.embeddings:
                embedding.zero_()
            for matrix, shared in zip((plain.q, plain.k, plain.v), alike.maps.parameters(), strict=True):
                matrix.weight.copy_(shared.repeat(len(matrix.weight) // len(shared), 1))
            plain.out.weight.copy_(alike.out.weight)
        return [
            Sample("equal heads", alike, {"equals": plain}),
            Sample("multiply", cls(13, 3, 5, 7)),
            Sample("add", cls(11, 3, 4, 5, "add")),
        ]

    def told_apart(self, which: int, source: Tensor) -> Tensor:
        """The shared projection as each head sees it."""
        shared, own = self.maps[which](source)[:, None], self.embeddings[which][:, None]
        return shared + own if self.form == "add" else shared * (1 + own)

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).flatten(2))

    @property
    def parameter_count(self) -> int:
        return (self.width + self.heads) * (2 * self.head_dim + self.value_dim) + (
            self.heads * self.value_dim * self.width
        )

    @property
    def flops(self) -> int:
        return 2 * (self.parameter_count - self.heads * (2 * self.head_dim + self.value_dim))


@published(
    "knocking_heads",
    family="scored",
    kind="projection",
    row=209,
    title="Knocking-Heads Attention",
    arxiv="2510.23052",
    year=2025,
    aliases=("kha",),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "maps shared by all heads, that begin as the identity: then multi-head attention exactly; "
                "they fold into its matrices"
            ),
            cells="projections.knocking",
            holds="projections.begins_and_folds",
        ),
        Claim(
            "a small language model's loss is no higher than multi-head attention's",
            cells="small_lm.beside(layers='softmax*2', projection='knocking_heads')",
            holds="small_lm.loss_at_most(ratio=1.0)",
        ),
        Claim(
            "nor with the gated network for values",
            cells="small_lm.beside(layers='softmax*2', projection='knocking_heads(values=gated)')",
            holds="small_lm.loss_at_most(ratio=1.0)",
        ),
    ),
)
class KnockingHeads(Grouped):
    """Grouped projections whose heads' queries, keys and values then pass one small matrix each, shared by all heads.

        linear:  q_h = x W^Q_h T_Q,   k_g = c W^K_g T_K,   v_g = c W^V_g T_V
        gated:   v_g = 2 (c W^V_g T_V ⊙ σ(c W^V_g T_G)) T_D, q and k as before

    The T are the identity at the start, but for T_G, which is zero, so that both forms begin as `Grouped`.
    Parameters: those of `Grouped`, and 2 d² + e² (gated: 3 e²).

    Args:
        values: the form.

    Raises:
        ValueError: another form.

    Paper: Zhou et al., arXiv 2510.23052.
    """

    def __init__(self, sizes: Sizes, values: Literal["linear", "gated"] = "linear") -> None:
        super().__init__(sizes)
        if values not in ("linear", "gated"):
            raise wrong("values", repr(values), "linear or gated")
        d, e = sizes.head_dim, sizes.value_dim
        self.mixes = nn.ParameterList(nn.Parameter(torch.eye(size)) for size in (d, d, e))
        last = [torch.zeros(e, e), torch.eye(e)] if values == "gated" else []
        self.gated = nn.ParameterList(nn.Parameter(matrix) for matrix in last)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().forward(x, context)
        mixed = v @ self.mixes[2]
        if self.gated:
            mixed = 2 * (mixed * torch.sigmoid(v @ self.gated[0])) @ self.gated[1]
        return q @ self.mixes[0], k @ self.mixes[1], mixed

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """At the start, where both forms are plain, and mixed, which a grouped projection is too."""
        found, sizes = [], Sizes(13, 4, 2, 5, 7)
        for values in ("linear", "gated"):
            new = cls(sizes, values)
            found.append(Sample(f"{values}, new", new, {"equals": Grouped(sizes).same_as(new)}))
            mixed = cls(sizes, values).double()  # so that what folds into one matrix is not rounded
            with torch.no_grad():
                for mix in (*mixed.mixes, *mixed.gated):
                    mix.add_(0.3 * torch.randn_like(mix))
            equals = {} if mixed.gated else {"equals": mixed.folded()}
            found.append(Sample(f"{values}, mixed", mixed, equals))
        return found

    def folded(self) -> Grouped:
        """The grouped projection that computes the same.

        Raises:
            ValueError: the gated form, which is not linear.
        """
        if self.gated:
            raise wrong("values", "gated", "linear: a gate does not fold into matrices")
        found = Grouped(self.sizes).to(self.q.weight)
        with torch.no_grad():
            found.out.weight.copy_(self.out.weight)
            for name, mix in zip(("q", "k", "v"), self.mixes, strict=True):
                whole = getattr(self, name).weight.view(-1, mix.shape[0], self.width)
                getattr(found, name).weight.copy_((mix.mT @ whole).flatten(0, 1))
        return found

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + 2 * self.head_dim**2 + (1 + len(self.gated)) * self.value_dim**2

    @property
    def flops(self) -> int:
        d, e, groups = self.head_dim, self.value_dim, self.kv_heads
        return 2 * (super().parameter_count + (self.heads + groups) * d * d + (1 + len(self.gated)) * groups * e * e)


@published(
    "merged_query_key",
    family="scored",
    kind="projection",
    row=125,
    title="Reducing the Transformer Architecture to a Minimum",
    arxiv="2410.13732",
    year=2024,
    aliases=("minimal_transformer", "symmetric_attention"),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "one matrix in the place of query and key matrices scores the same pairs; a symmetric one "
                "gives symmetric scores"
            ),
            cells="projections.merged",
            holds="projections.scores_the_same",
        ),
        Claim(
            ("without networks, value and output matrices merged, digits are told apart as well, within a point"),
            cells="projections.minimal",
            holds="projections.tells_digits_as_well(arm=merged)",
        ),
        Claim(
            "and with value and output matrices left out",
            cells="projections.minimal",
            holds="projections.tells_digits_as_well(arm='left out')",
        ),
    ),
)
class Merged(Projection):
    """One matrix for each head between query and key, and none, or one, behind the values.

        q_h = x W_h,  k = c,  v = c:   s_ij = x_i W_h c_jᵀ;   symmetric: W_h = W_hᵀ

    Keys and values are the hidden states themselves, d = e = width, one for all heads. With ``out`` the heads' outputs
    pass one matrix, without it their mean is the output. Parameters: h width², of a symmetric W the triangle
    h width (width + 1) / 2, and, with ``out``, h width².

    One head, no ``out`` and blocks without networks are the paper's smallest transformer,
    ``Config(heads=1, inner=0, projection="merged_query_key(out=False)")``.

    Paper: Bermeitinger et al., arXiv 2410.13732.
    """

    mirrored: Tensor | None

    def __init__(self, width: int, heads: int, symmetric: bool = False, out: bool = True) -> None:
        super().__init__(Sizes(width, heads, 1, width, width))
        rows, columns = torch.tril_indices(width, width)
        mirrored = torch.zeros(width, width, dtype=torch.int64)
        mirrored[rows, columns] = mirrored[columns, rows] = torch.arange(len(rows))
        self.register_buffer("mirrored", mirrored if symmetric else None, persistent=False)
        shape = (heads, len(rows)) if symmetric else (heads, width, width)
        self.between = nn.Parameter(torch.randn(shape) * width**-0.5)
        self.out = nn.Linear(heads * width, width, bias=False) if out else None

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Among them one made of a multi-head projection: mechanisms divide by the root of the width instead of d."""
        plain, merged = Grouped(Sizes(13, 3, 3, 5, 7)).double(), cls(13, 3).double()
        assert merged.out is not None
        queries, keys = (matrix.weight.unflatten(0, (3, 5)) for matrix in (plain.q, plain.k))
        values, outs = plain.v.weight.unflatten(0, (3, 7)), plain.out.weight.unflatten(1, (3, 7))
        with torch.no_grad():
            merged.between.copy_(queries.mT @ keys * (13 / 5) ** 0.5)
            merged.out.weight.copy_(torch.einsum("whe,hec->whc", outs, values).flatten(1))
        return [
            Sample("of 3 heads", merged, {"equals": plain, "positions": False}),
            Sample("symmetric, no out", cls(11, 2, symmetric=True, out=False)),
        ]

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self.between if self.mirrored is None else self.between[:, self.mirrored]
        return x[:, None] @ matrix, context[:, None], context[:, None]

    @property
    def value_slice(self) -> slice | None:
        return slice(0, self.width)

    def merge(self, out: Tensor) -> Tensor:
        return out.mean(1) if self.out is None else self.out(out.transpose(1, 2).flatten(2))

    @property
    def parameter_count(self) -> int:
        return self.between.numel() + (0 if self.out is None else self.out.weight.numel())

    @property
    def flops(self) -> int:
        return 2 * self.heads * self.width**2 * (1 if self.out is None else 2)
