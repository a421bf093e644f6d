"""The values in tests/golden/rules.json: the rules still give them, and so do the formulas of the papers.

`scripts/make_golden_rules.py` makes them again; `docs/peers.md` has the layout of the file.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from make_golden_rules import GOLDEN, inputs, results, text
from scipy.linalg import orthogonal_procrustes
from test_rules import best, bulyan, krum_scores

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads(GOLDEN.read_text())
RULES = RECORDED["rules"]
NAMES = ("A", "B", "head")
COUNT_FLOOR = 1e-3  # examples of a class that a client is taken to have at least


class Group:
    """Clients of the file with the weights p_k, and the vector (A, B, head) of each."""

    def __init__(self, name: str) -> None:
        given = RECORDED["inputs"][name]
        self.start, self.clients = arrays(given["start"]), [arrays(client) for client in given["clients"]]
        self.examples = [client["examples"] for client in given["clients"]]
        self.weights = np.array(self.examples) / sum(self.examples)
        self.losses = [client.get("loss") for client in given["clients"]]
        self.counts = np.array([client.get("counts", ()) for client in given["clients"]])

    def mean(self, name: str) -> np.ndarray:
        return sum(p * client[name] for p, client in zip(self.weights, self.clients, strict=True))

    def products(self) -> np.ndarray:
        """sum p_k B_k A_k, dense."""
        return sum(p * c["B"] @ c["A"] for p, c in zip(self.weights, self.clients, strict=True))

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The start (values,) and where each client ended (clients, values)."""
        return flat(self.start), np.array([flat(client) for client in self.clients])


def arrays(values) -> dict[str, np.ndarray]:
    return {name: np.array(values[name], float) for name in NAMES if name in values}


def flat(values) -> np.ndarray:
    return np.concatenate([values[name].ravel() for name in NAMES])


def expect(made, **expected) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, rtol=0, atol=2e-6, err_msg=name)


# --- the rules of this version -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return results(RECORDED["inputs"])


def test_the_inputs_are_those_of_the_script_and_every_strategy_of_a_config_is_among_the_rules(found):
    assert RECORDED["inputs"] == inputs()
    assert found.keys() == RULES.keys() >= {path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml")}
    assert GOLDEN.read_text() == text(RECORDED["inputs"], RULES), "the file is as the script writes it"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_still_gives_the_recorded_values(found, name):
    close(found[name], RULES[name])


def close(made, recorded) -> None:
    """The same structure, and numbers up to rounding."""
    if isinstance(recorded, dict):
        assert made.keys() == recorded.keys()
        for key, value in recorded.items():
            close(made[key], value)
    elif isinstance(recorded, list) and recorded and isinstance(recorded[0], dict):
        for one, other in zip(made, recorded, strict=True):
            close(one, other)
    elif isinstance(recorded, str):
        assert made == recorded
    else:
        np.testing.assert_allclose(made, recorded, rtol=0, atol=2e-6)


# --- the same values by the formulas of the papers ---------------------------------------------------


def means(group: Group, *names: str) -> dict[str, np.ndarray]:
    """The weighted means of some tensors, and of the others the start."""
    return {name: group.mean(name) if name in names else group.start[name] for name in NAMES}


@pytest.mark.parametrize(
    ("rule", "names"),
    [("fedavg", "A B head"), ("fedprox", "A B head"), ("share_a", "A"), ("share_b", "B"), ("ffa", "B")],
)
def test_a_split_averages_what_it_shares_and_the_rest_stays(rule, names):
    expect(RULES[rule]["rounds"][0], **means(Group("alike"), *names.split()))


def test_rolora_averages_B_in_the_first_round_and_A_in_the_second():
    group, (first, second) = Group("alike"), RULES["alternate"]["rounds"]
    expect(first, **means(group, "B"))
    moved = group.start["A"] + RULES["alternate"]["scales"][1] * (group.mean("A") - group.start["A"])
    expect(second, A=moved, B=group.mean("B"), head=group.start["head"])


def server_steps(rule: str, delta: np.ndarray) -> list[np.ndarray]:
    """x after each round, by FedAvgM (arXiv:1909.06335) and by the adaptive ones as Flower has them;
    tests/strategies/test_peers.py has those of arXiv:2003.00295."""
    options, m, v, x, reached = RULES[rule]["settings"], 0.0, 0.0, Group("alike").vectors()[0], []
    for round_, scale in enumerate(RULES[rule]["scales"], 1):
        d, rate = scale * delta, options.get("eta", 0.0)
        if rule == "fedavgm":
            m = options["server_momentum"] * m + d
            x = x + options["server_learning_rate"] * m
        else:
            beta_1, beta_2 = options.get("beta_1", 0.0), options.get("beta_2", 0.0)
            m = beta_1 * m + (1 - beta_1) * d
            v = {
                "fedadagrad": v + d**2,
                "fedadam": beta_2 * v + (1 - beta_2) * d**2,
                "fedyogi": v - (1 - beta_2) * d**2 * np.sign(v - d**2),
            }[rule]
            if rule == "fedadam":
                rate *= np.sqrt(1 - beta_2 ** (round_ + 1)) / (1 - beta_1 ** (round_ + 1))
            x = x + rate * m / (np.sqrt(v) + options["tau"])
        reached.append(x)
    return reached


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_server_optimizer_steps_along_the_mean_difference(rule):
    group = Group("alike")
    start, vectors = group.vectors()
    reached = server_steps(rule, group.weights @ (vectors - start))
    for made, x in zip(RULES[rule]["rounds"], reached, strict=True):
        np.testing.assert_allclose(flat(arrays(made)), x, rtol=0, atol=2e-6)


def q_fedavg(group: Group, start: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Algorithm 2 of arXiv:1905.10497."""
    q, rate = (RULES["qfedavg"]["settings"][key] for key in ("q_param", "qffl_learning_rate"))
    gradients = (start - vectors) / rate
    losses = np.array(group.losses)
    sizes = q * losses ** (q - 1) * (gradients**2).sum(axis=1) + losses**q / rate
    return start - losses**q @ gradients / sizes.sum()


def clipped_mean(group: Group, start: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The mean of updates that are clipped to the norm of the config (arXiv:1710.06963), without noise."""
    moved, norm = vectors - start, RULES["dp_fixed_clipping"]["settings"]["clipping_norm"]
    short = moved * np.minimum(1, norm / np.linalg.norm(moved, axis=1))[:, None]
    return start + group.weights @ short


OF_VECTORS = {
    "fedmedian": lambda g, s, v: np.median(v, axis=0),
    "fedtrimmedavg": lambda g, s, v: np.sort(v, axis=0)[1:-1].mean(axis=0),  # int(.2 x 7) at each end
    "krum": lambda g, s, v: v[np.argmin(krum_scores(v, 1))],
    "multikrum": lambda g, s, v: best(v, RULES["multikrum"]["settings"]["num_clients_to_keep"], g.examples),
    "bulyan": lambda g, s, v: bulyan(v, 1),
    "qfedavg": q_fedavg,
    "dp_fixed_clipping": clipped_mean,
}


@pytest.mark.parametrize("rule", OF_VECTORS)
def test_a_rule_that_compares_clients_gives_what_its_formula_gives(rule):
    group = Group("alike")
    made = flat(arrays(RULES[rule]["rounds"][0]))
    np.testing.assert_allclose(made, OF_VECTORS[rule](group, *group.vectors()), rtol=0, atol=2e-6)


def test_fedex_has_the_means_and_merges_what_they_lack():
    group, made = Group("alike"), RULES["fedex"]["rounds"][0]
    lacking = group.products() - group.mean("B") @ group.mean("A")
    expect(made, **means(group, *NAMES), merged=lacking)
    assert np.linalg.norm(lacking) > 0.1


@pytest.mark.parametrize(("rule", "inputs"), [("flora", "alike"), ("flora, mixed ranks", "mixed")])
def test_flora_merges_the_mean_of_the_products(rule, inputs):
    made = RULES[rule]["rounds"][0]
    expect(made, merged=Group(inputs).products(), B=np.zeros(np.shape(made["B"])))


@pytest.mark.parametrize(("rule", "inputs"), [("flexlora", "alike"), ("flexlora, mixed ranks", "mixed")])
def test_flexlora_has_the_largest_components_of_the_mean_of_the_products(rule, inputs):
    made = arrays(RULES[rule]["rounds"][0])
    u, s, vt = np.linalg.svd(Group(inputs).products())
    for rank in range(1, len(made["A"]) + 1):  # a client of this rank takes so many
        best_product = u[:, :rank] * s[:rank] @ vt[:rank]
        np.testing.assert_allclose(made["B"][:, :rank] @ made["A"][:rank], best_product, rtol=0, atol=5e-6)
    np.testing.assert_allclose(made["A"] @ made["A"].T, np.eye(len(made["A"])), rtol=0, atol=2e-6)


def test_fedsvd_keeps_the_product_of_the_mean_B_and_makes_A_orthonormal():
    group, made = Group("alike"), arrays(RULES["fedsvd"]["rounds"][0])
    np.testing.assert_allclose(made["B"] @ made["A"], group.mean("B") @ group.start["A"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(made["A"] @ made["A"].T, np.eye(2), rtol=0, atol=2e-6)
    singular = np.linalg.svd(group.mean("B") @ group.start["A"], compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(made["B"], axis=0), singular, rtol=0, atol=5e-6)


def test_fedrot_averages_what_one_rotation_of_both_factors_brings_closest_to_the_start():
    group = Group("alike")

    def stacked(values):
        return np.concatenate([values["B"], values["A"].T])

    turned = [stacked(c) @ orthogonal_procrustes(stacked(c), stacked(group.start))[0] for c in group.clients]
    mean = sum(p * values for p, values in zip(group.weights, turned, strict=True))
    rows = len(group.start["B"])
    expect(RULES["fedrot"]["rounds"][0], B=mean[:rows], A=mean[rows:].T, head=group.mean("head"))


def test_a_counted_head_is_averaged_row_by_row():
    group = Group("alike")
    shares = group.counts + COUNT_FLOOR
    shares = shares / shares.sum(axis=0)
    head = sum(u[:, None] * client["head"] for u, client in zip(shares, group.clients, strict=True))
    expect(RULES["fedavg, counted head"]["rounds"][0], **means(group, *NAMES) | {"head": head})
    assert np.abs(head - group.mean("head")).max() > 0.01


def test_clients_of_a_soft_split_are_between_their_own_and_the_common_values():
    group, degrees = Group("alike"), RULES["soft"]["settings"]
    for made, client in zip(RULES["soft"]["rounds"][0]["clients"], group.clients, strict=True):
        own = {name: group.mean(name) + degrees[name] * (client[name] - group.mean(name)) for name in degrees}
        expect(made, A=group.mean("A"), **own)


def test_the_formulas_are_all_here():
    """A rule that is added to the file needs a formula as well."""
    source = Path(__file__).read_text().partition("by the formulas of the papers -")[2]
    assert {name for name in RULES if f'"{name}"' not in source} == set()


def test_the_example_of_the_docs_compares_an_implementation_with_the_file(monkeypatch, capsys):
    page = (ROOT / "docs" / "peers.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert float(capsys.readouterr().out) < 1e-6
    wrong = example.replace('c["examples"] / 100', "1")
    assert wrong != example
    exec(wrong, {})
    assert float(capsys.readouterr().out) > 0.1
