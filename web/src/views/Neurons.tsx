/** How the score of one pair comes about: the products of the coordinates of its query and its key. */
import { layers, record, served } from "../data";
import { pair } from "../exact";
import { head, key, layer, other, token } from "../state";
import { number } from "../words";
import { useLoaded } from "./useLoaded";

const LISTED = 6;

/** Only where there is a server, which has the queries and keys. */
export function Neurons() {
  const [inLayer, of, row, at] = [layer.value, head.value, token.value, key.value];
  const seen = served && at !== null && !other.value && !(layers[inLayer]!.mechanism ?? "softmax").includes("(");
  const found = useLoaded(() => (seen ? pair(layers[inLayer]!.index, of, row, at!).catch(() => null) : Promise.resolve(null)), [inLayer, of, row, at, seen]);
  if (!found) return null;
  const { products, score, weight } = found;
  const most = Math.max(...products.map(Math.abs), 1e-9);
  const order = products.map((value, coordinate) => ({ value, coordinate })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  return (
    <section class="neurons" aria-label="coordinates of the pair">
      <h2>q ∘ k of the pinned pair</h2>
      <svg viewBox={`0 0 ${products.length * 4} 60`} role="img" aria-label={`products of ${products.length} coordinates`} preserveAspectRatio="none">
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
        {weight !== null && <> , which the row’s softmax makes a weight of <b>{number(weight)}</b></>}. Most say{" "}
        {order.slice(0, LISTED).map(({ value, coordinate }) => `${coordinate}: ${value.toFixed(2)}`).join(", ")}.
        {record.layers[inLayer]!.softcap ? " The layer caps scores after the sum." : ""}
      </p>
    </section>
  );
}
