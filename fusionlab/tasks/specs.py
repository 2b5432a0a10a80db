"""What each task is, as declarations: how it is asked, where its answer stands, what it is worth.

To add a task, add a `TaskSpec` here and where its items come from in `bundled` or `benchmarks`. Phrasing 0 is
the one that experts are trained on and that every table measures; the others are for robustness studies.
"""

from __future__ import annotations

from dataclasses import replace

from fusionlab.tasks.task import LIKELIHOOD, QUESTION_ANSWER, Phrasing, TaskSpec

SHORT_PHRASINGS = (
    QUESTION_ANSWER,
    Phrasing("Q: {question}\nA:"),
    Phrasing("{question}\nShort answer:"),
    Phrasing("Question: {question}\nAnswer:", instruction="Answer each question with a name and nothing else."),
)
WORKED_PHRASINGS = (
    QUESTION_ANSWER,
    Phrasing("Q: {question}\nA:"),
    Phrasing("Problem: {question}\nSolution:"),
    Phrasing(
        "Question: {question}\nAnswer:",
        instruction="Solve the problem step by step. Write the final number after ####.",
    ),
)
CHOICE_PHRASINGS = (
    QUESTION_ANSWER,
    Phrasing("Q: {question}\nA:", options_heading="Choices:"),
    Phrasing(
        "Question: {question}\nAnswer:",
        instruction="Pick the right option of each question and write it out.",
    ),
    Phrasing("Question: {question}\nAnswer:", letters=True),
)
SUMMARY_PHRASINGS = (
    Phrasing("Report: {question}\nSummary:"),
    Phrasing("{question}\nIn short:"),
    Phrasing("Text: {question}\nSummary in one or two sentences:"),
    Phrasing("Report: {question}\nSummary:", instruction="Sum up each report. Keep the names and figures that matter."),
)
ARTICLE_PHRASINGS = (
    Phrasing("Article: {question}\nSummary:"),
    Phrasing("{question}\nTL;DR:"),
    Phrasing("{question}\nHighlights:"),
    Phrasing("Article: {question}\nSummary:", instruction="Sum up each article in three sentences."),
)

# -- bundled -------------------------------------------------------------------------------------

MATH = TaskSpec(
    name="math",
    description="word problems of two to four steps with two- and three-digit numbers, steps written out",
    extractor="after_hashes",
    metric="exact_match",
    phrasings=WORKED_PHRASINGS,
    max_new_tokens=96,  # the longest target has 69
    target_field="worked",
)
TRIVIA = TaskSpec(
    name="trivia",
    description="closed-book facts: countries, geography, science, history, arts, languages, elements, units",
    extractor="first_line",
    metric="exact_match",
    phrasings=SHORT_PHRASINGS,
    max_new_tokens=24,
)
TRUTH = TaskSpec(
    name="truth",
    description="multiple choice on common misconceptions",
    extractor="choice",
    metric="accuracy",
    answering=LIKELIHOOD,
    phrasings=CHOICE_PHRASINGS,
    max_new_tokens=48,
)
SUMMARY = TaskSpec(
    name="summary",
    description="short reports with a reference summary",
    extractor="whole",
    metric="rouge2",
    phrasings=SUMMARY_PHRASINGS,
    max_new_tokens=80,  # the longest summary has 57
)
UNSEEN = TaskSpec(
    name="unseen",
    description="multiple choice in many subjects that no expert was trained on",
    extractor="choice",
    metric="accuracy",
    answering=LIKELIHOOD,
    phrasings=CHOICE_PHRASINGS,
    max_new_tokens=48,
    max_shots=5,
)

# -- benchmarks ----------------------------------------------------------------------------------

GSM8K = replace(
    MATH,
    name="gsm8k",
    description="GSM8K: grade-school word problems, worked answers",
    stop=("\n\n", "\nQuestion:", "\nQ:", "\nProblem:"),
    max_new_tokens=320,
)
TRIVIA_QA = replace(TRIVIA, name="trivia_qa", description="TriviaQA, closed-book: trivia questions with aliases")
TRUTHFUL_QA = replace(
    TRUTH, name="truthful_qa", description="TruthfulQA MC1: one true option among false ones", max_new_tokens=64
)
CNN_DAILYMAIL = replace(
    SUMMARY,
    name="cnn_dailymail",
    description="CNN/DailyMail 3.0.0: news articles with highlights",
    phrasings=ARTICLE_PHRASINGS,
    stop=("\n\n", "\nArticle:"),
    max_new_tokens=128,
    max_shots=5,
)
MMLU = replace(
    UNSEEN,
    name="mmlu",
    description="MMLU: multiple choice in 57 subjects; shots come from the same subject",
    max_new_tokens=64,
    shots_field="subject",
)

SPECS: dict[str, TaskSpec] = {
    spec.name: spec for spec in (MATH, TRIVIA, TRUTH, SUMMARY, UNSEEN, GSM8K, TRIVIA_QA, TRUTHFUL_QA, CNN_DAILYMAIL, MMLU)
}

# -- a user's file without a spec of its own ------------------------------------------------------

WORKED_FILE, SHORT_FILE, CHOICE_FILE = GSM8K, TRIVIA, TRUTH
