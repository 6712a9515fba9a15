"""Neighbours are those of scikit-learn's brute force, without what is excluded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from finetune.evaluation import neighbours
from finetune.evaluation.neighbours import nearest


@given(
    seed=st.integers(0, 1000),
    queries=st.integers(0, 12),
    images=st.integers(1, 30),
    width=st.integers(2, 6),
    count=st.integers(1, 8),
)
@settings(max_examples=40)
def test_it_agrees_with_scikit_learn(seed, queries, images, width, count):
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randn(queries, width, generator=generator) * 10
    features = torch.randn(images, width, generator=generator)
    indices, similarity = nearest(asked, features, count=count)
    k = min(count, images)
    assert indices.shape == similarity.shape == (queries, k)
    assert (indices.dtype, similarity.dtype) == (torch.int64, torch.float32)
    if queries:
        theirs = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
        distances, places = theirs.fit(features.numpy()).kneighbors(asked.numpy())
        np.testing.assert_allclose(similarity, 1 - distances, atol=1e-5)
        assert similarity.abs().max() <= 1
        if (np.diff(distances) > 1e-5).all():
            assert indices.tolist() == places.tolist()


@given(seed=st.integers(0, 1000), images=st.integers(1, 20), count=st.integers(1, 25))
def test_no_image_is_its_own_neighbour(seed, images, count):
    features = torch.randn(images, 4, generator=torch.Generator().manual_seed(seed))
    indices, similarity = nearest(features, features, count=count, exclude=torch.arange(images))
    assert indices.shape == (images, min(count, images - 1))
    assert (indices != torch.arange(images).unsqueeze(1)).all()
    assert similarity.isfinite().all()
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_what_is_excluded_is_one_place_alone():
    features = torch.eye(4)[[0, 0, 1, 2]]  # the first two are copies
    indices, similarity = nearest(features[:1], features, count=2, exclude=torch.tensor([0]))
    assert indices[0, 0] == 1
    assert similarity[0].tolist() == [1, 0]


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, features = (torch.randn(n, 8, generator=generator) for n in (50, 30))
    own = torch.arange(50) % 30
    whole = nearest(queries, features, count=3, exclude=own)
    monkeypatch.setattr(neighbours, "_CHUNK", 64)
    parts = nearest(queries, features, count=3, exclude=own)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


def test_zeros_are_like_nothing():
    indices, similarity = nearest(torch.zeros(1, 3), torch.eye(3), count=2)
    assert indices.shape == (1, 2)
    assert similarity.tolist() == [[0, 0]]
    _, similarity = nearest(torch.ones(1, 3), torch.zeros(2, 3), count=2)
    assert similarity.tolist() == [[0, 0]]


def test_among_no_images_there_are_no_neighbours():
    indices, similarity = nearest(torch.ones(2, 3), torch.zeros(0, 3), count=2)
    assert indices.shape == similarity.shape == (2, 0)


def test_arguments_must_fit():
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[2, 4\]"):
        nearest(torch.zeros(2, 3), torch.zeros(2, 4), count=1)
    with pytest.raises(ValueError, match="count: got 0"):
        nearest(torch.zeros(2, 3), torch.zeros(2, 3), count=0)
    with pytest.raises(ValueError, match="exclude: got"):
        nearest(torch.zeros(2, 3), torch.zeros(2, 3), count=1, exclude=torch.tensor([0]))
