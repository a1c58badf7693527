// Lists executed notebooks below the pages in search results.
var Scorer = {
  score: ([page, , , , score]) => (page.startsWith("results/") ? score - 20 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
