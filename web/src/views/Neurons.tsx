/** How the score of one pair comes about, beside those of the query's strongest keys: products of the coordinates of q and k. */
import { useState } from "preact/hooks";
import { ramp, STEPS } from "../colour";
import { edges, header, layers, lengths, record, served, textsOf } from "../data";
import { pair, pairsKnown, scored, type PairOfVectors } from "../exact";
import { chooseHead, head, key, layer, other, theme, token } from "../state";
import { alone, number, placed } from "../words";
import { useLoaded } from "./useLoaded";

const [LISTED, KEYS, MORE, NAMED] = [6, 6, 12, 12];

interface Found {
  /** The pinned pair, and its weight where it is known. */
  pinned: PairOfVectors;
  weight: number | null;
  /** Other keys of the query by their score: the strongest, or, where more are asked for, some of small weight, too. */
  others: { at: number; pair: PairOfVectors }[];
  /** Whether there are more of them. */
  more: boolean;
}

/** Where queries and keys are: of all heads at a server, of some on the page. */
export function Neurons() {
  const [inLayer, of, row, at] = [layer.value, head.value, token.value, key.value];
  const known = pairsKnown(inLayer, of);
  const [count, setCount] = useState(KEYS);
  const [vectors, setVectors] = useState(false);
  const found = useLoaded(() => (known && at !== null && !other.value ? load(inLayer, of, row, at, count).catch(() => null) : Promise.resolve(null)), [inLayer, of, row, at, count, known, other.value]);
  if (other.value || !scored(inLayer)) return null;
  if (!known) return <Absent />;
  if (at === null) return <p class="small neurons">Pin a pair (click it, or press Enter) to see what its score is made of.</p>;
  if (!found) return null;
  const { products, score, query, key: vector } = found.pinned;
  const most = Math.max(...products.map(Math.abs), 1e-9);
  const order = products.map((value, coordinate) => ({ value, coordinate })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const keys = textsOf(inLayer)[1];
  return (
    <section class="neurons" aria-label="coordinates of the pair">
      <h2>q ∘ k of the pinned pair</h2>
      <svg class="products" viewBox={`0 0 ${products.length * 4} 60`} role="img" aria-label={`products of ${products.length} coordinates`} preserveAspectRatio="none">
        <line x1="0" x2={products.length * 4} y1="30" y2="30" />
        {products.map((value, coordinate) => {
          const height = (Math.abs(value) / most) * 29;
          return (
            <rect key={coordinate} class={value < 0 ? "less" : "more"} x={coordinate * 4} width="3" y={value < 0 ? 30 : 30 - height} height={height}>
              <title>{`coordinate ${coordinate}: ${value.toFixed(3)}`}</title>
            </rect>
          );
        })}
      </svg>
      <p class="small">
        Their sum is the score <b>{score.toFixed(3)}</b>
        {found.weight !== null && <>, which the row’s softmax makes a weight of <b>{number(found.weight)}</b></>}. Most say{" "}
        {order.slice(0, LISTED).map(({ value, coordinate }) => `${coordinate}: ${value.toFixed(2)}`).join(", ")}.
        {layers[inLayer]!.softcap ? " The layer caps scores after the sum." : ""}
        {!served && " q and k are rounded to thousandths of their largest coordinate."}
      </p>
      <div class="strips" role="list" aria-label="vectors by coordinate">
        <Strip name="q" values={query} said={`query ${placed(row, textsOf(inLayer)[0])}`} />
        <Strip name="k" values={vector} said={`key ${placed(at, keys)}`} />
      </div>
      <h3>
        {vectors ? "k, and the sum of q ∘ k" : "q ∘ k and its sum"}: the pinned key and the strongest others; orange {vectors ? "is above zero, violet below" : "adds to the score, violet takes from it"}
      </h3>
      <div class="strips" role="list" aria-label={vectors ? "vectors by key" : "products by key"}>
        {[{ at, pair: found.pinned }, ...found.others].map((each) => (
          <Strip key={each.at} name={alone(each.at, keys)} place={each.at} values={vectors ? each.pair.key : each.pair.products} most={vectors ? undefined : most} score={each.pair.score} said={`key ${placed(each.at, keys)}`} />
        ))}
      </div>
      <div class="segments">
        <button aria-pressed={!vectors} onClick={() => setVectors(false)}>products</button>
        <button aria-pressed={vectors} onClick={() => setVectors(true)}>keys</button>
        {found.more && <button onClick={() => setCount(count + MORE)}>more keys</button>}
        {count > KEYS && <button onClick={() => setCount(KEYS)}>fewer</button>}
      </div>
    </section>
  );
}

async function load(inLayer: number, of: number, row: number, at: number, count: number): Promise<Found> {
  const known = await edges(inLayer, of);
  const strong = known.row(row).filter(({ token: one }) => one !== at).sort((a, b) => b.weight - a.weight).map(({ token: one }) => one);
  const seen = new Set([at, ...strong]);
  const last = layers[inLayer]!.causal ? row + 1 : Infinity;
  const rest = Array.from({ length: Math.min(last, lengths[textsOf(inLayer)[1]]!) }, (_, one) => one).filter((one) => !seen.has(one));
  const every = [...strong, ...rest];
  const shown = count === KEYS ? strong.slice(0, KEYS) : every.slice(0, count);
  const [pinned, ...others] = await Promise.all([at, ...shown].map((one) => pair(inLayer, of, row, one)));
  return { pinned: pinned!, weight: pinned!.weight ?? known.at(row, at), others: others.map((each, place) => ({ at: shown[place]!, pair: each })).sort((a, b) => b.pair.score - a.pair.score), more: shown.length < every.length };
}

interface StripOf {
  name: string;
  place?: number;
  values: ArrayLike<number>;
  said: string;
  /** What the ends of the scale stand for, if not the largest of these. */
  most?: number;
  score?: number;
}

/** One vector as a row of colours. */
function Strip({ name, place, values, said, most, score }: StripOf) {
  const all = Array.from(values);
  const [colours, end] = [ramp(theme.value, true).css, most ?? Math.max(...all.map(Math.abs), 1e-9)];
  const step = (value: number): number => Math.max(0, Math.min(STEPS - 1, Math.round(((STEPS - 1) / 2) * (1 + value / end))));
  return (
    <div role="listitem" title={said}>
      <span class="piece">{name}</span>
      <span class="at">{place}</span>
      <svg viewBox={`0 0 ${all.length} 1`} preserveAspectRatio="none" role="img" aria-label={`${said}: ${all.length} coordinates`}>
        {all.map((value, coordinate) => (
          <rect key={coordinate} x={coordinate} width="1.02" height="1" fill={colours[step(value)]}>
            <title>{`coordinate ${coordinate}: ${value.toFixed(3)}`}</title>
          </rect>
        ))}
      </svg>
      <span class="value">{score?.toFixed(2)}</span>
    </div>
  );
}

/** What the page has of other heads, and where this one's pairs are. */
function Absent() {
  const some = header.neurons ?? [];
  return (
    <section class="neurons" aria-label="coordinates of the pair">
      <h2>q ∘ k of a pair</h2>
      <p class="small">
        {record.kept ? "This head’s queries and keys are not on the page. regard serve shows them of every head; " : "Queries and keys were not kept; regard look --keep keeps them, and "}
        <code>regard look --neurons {layers[layer.value]!.index}.{head.value}</code> puts this head’s in.
      </p>
      {some.length > 0 && (
        <p class="small offered">
          The page has those of{" "}
          {some.slice(0, NAMED).map(([index, of]) => (
            <button key={`${index}.${of}`} onClick={() => chooseHead(layers.findIndex((each) => each.index === index), of)}>
              L{index} · H{of}
            </button>
          ))}
          {some.length > NAMED && ` and ${some.length - NAMED} more`}
        </p>
      )}
    </section>
  );
}
