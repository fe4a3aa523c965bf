/** What the gates of training said of a version, as several views show it. */

import { make, pill, titled } from "../dom.js";

const KINDS = { pass: "good", refuse: "bad", inconclusive: "middling" };

/** The outcome, with the reasons behind it; null for a version that was not held against gates. */
export function outcome(gates) {
  if (!gates) return null;
  const said = gates.outcome ?? (gates.passed ? "pass" : "refuse"); // versions of 0.1.0 say only whether they passed
  return titled(reasons(gates).join("; "), pill(said, KINDS[said]));
}

/** The same with the reasons below. */
export const judgement = (gates) => [outcome(gates), reasons(gates).map((reason) => make("p", {}, reason))];

const reasons = ({ refusals = [], doubts = [] }) => [...refusals, ...doubts];
