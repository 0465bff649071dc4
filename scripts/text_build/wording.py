"""How each set words its constraints. The sets share no template, so a model cannot meet a wording twice."""

from __future__ import annotations

WORDING: dict[str, dict[str, tuple[str, ...]]] = {
    "calibration": {
        "words_max": ("Use at most {n} words.", "Keep it to {n} words or fewer.", "Stay under {n1} words."),
        "words_min": (
            "Write at least {n} words.",
            "Your reply needs {n} words or more.",
            "Do not write fewer than {n} words.",
        ),
        "words_between": ("Write between {low} and {high} words.", "The length should be {low} to {high} words."),
        "sentences": ("Answer in exactly {n} sentences.", "Your reply must have {n} sentences, no more and no fewer."),
        "paragraphs": (
            "Write exactly {n} paragraphs, separated by blank lines.",
            "Use {n} paragraphs with an empty line between them.",
        ),
        "bullets": (
            "Give exactly {n} bullet points, each starting with '{mark} '.",
            "Format the answer as {n} bullets that begin with '{mark} '.",
        ),
        "numbered": ("Number your points from 1 to {n}.", "The answer must be a numbered list of exactly {n} points."),
        "json": (
            'Return only a JSON object with one key, "{key}", that holds a list of {n} strings.',
            'Output valid JSON and nothing else: an object whose "{key}" is an array of {n} strings.',
        ),
        "keyword": (
            "Include the word '{word}'.",
            "The word '{word}' must appear in your reply.",
            "Make use of the term '{word}'.",
        ),
        "keyword_count": ("Use the word '{word}' at least {n} times.", "Mention '{word}' {n} times or more."),
        "avoid": ("Do not use the words '{first}' and '{second}'.", "Avoid '{first}' as well as '{second}'."),
        "no_comma": ("Do not use any commas.", "Write it without commas."),
        "no_digits": ("Do not use any digits.", "Spell out numbers; no digits at all."),
        "no_exclamation": ("No exclamation marks, please.", "Leave out exclamation marks."),
        "lowercase": ("Write everything in lower case.", "Use lower-case letters only."),
        "uppercase": ("Write everything in CAPITAL LETTERS.", "Use capital letters only."),
        "quoted": (
            "Put your whole answer in double quotation marks.",
            'Start and end with a double quotation mark (").',
        ),
        "tags": ("Place the answer between <{tag}> and </{tag}>.", "Wrap everything in <{tag}> tags."),
        "starts": ("Begin your answer with the word '{word}'.", "The first word must be '{word}'."),
        "ends": ("End with exactly this phrase: {phrase}", "Your last words must be: {phrase}"),
        "title": (
            "Give your answer a title in double angle brackets, such as <<Title>>.",
            "Start with a title wrapped in << and >>.",
        ),
        "postscript": ("Add a postscript at the end that starts with {mark}", "Finish with a postscript marked {mark}"),
    },
    "dev": {
        "words_max": ("No more than {n} words.", "{n} words is the upper limit."),
        "words_min": ("I want {n} words as a minimum.", "Make it {n} words long or longer."),
        "words_between": (
            "Aim for a word count from {low} up to {high}.",
            "Not less than {low} words, not more than {high}.",
        ),
        "sentences": ("The reply should consist of {n} sentences exactly.", "Limit: precisely {n} sentences."),
        "paragraphs": ("Split the text into {n} paragraphs by means of blank lines.",),
        "bullets": ("Make a list with {n} entries and let '{mark} ' introduce each of them.",),
        "numbered": ("Count the entries 1., 2. and so on up to {n}.",),
        "json": ('Reply with a bare JSON object: {{"{key}": [...]}} where the array has {n} strings.',),
        "keyword": ("Somewhere in the text, say '{word}'.", "Work '{word}' into it."),
        "keyword_count": ("'{word}' should occur {n} or more times.",),
        "avoid": ("The words '{first}' and '{second}' are forbidden.",),
        "no_comma": ("Commas are not allowed.",),
        "no_digits": ("It must be free of digits.",),
        "no_exclamation": ("Refrain from exclamation marks.",),
        "lowercase": ("All letters must be small.",),
        "uppercase": ("ALL CAPS for the full reply.",),
        "quoted": ('The complete reply belongs inside "double quotes".',),
        "tags": ("Open with <{tag}> and close with </{tag}>.",),
        "starts": ("Let '{word}' be the opening word.",),
        "ends": ("Close with the following words and nothing after them: {phrase}",),
        "title": ("Put a heading on top, like <<My heading>>.",),
        "postscript": ("After the answer comes a note introduced by {mark}",),
    },
    "score": {
        "words_max": ("The answer may have {n} words at the most.", "Be brief: {n} words or less."),
        "words_min": ("It has to be {n} words long at the very least.", "Reach at least a count of {n} words."),
        "words_between": (
            "Somewhere from {low} to {high} words would be right.",
            "Your word budget: {low} minimum, {high} maximum.",
        ),
        "sentences": ("I expect {n} sentences.", "Phrase it in {n} sentences."),
        "paragraphs": ("There should be {n} paragraphs, with one blank line after each but the last.",),
        "bullets": (
            "Present it as {n} lines that each open with '{mark} '.",
            "{n} bullets, please; the bullet sign is '{mark}'.",
        ),
        "numbered": ("List {n} points with numbers in front of them.", "Enumerate: {n} numbered points."),
        "json": ('Your output is parsed by a program: send JSON with the single key "{key}" and {n} strings in its list.',),
        "keyword": ("One required word: {word}.", "Your text has to contain '{word}'."),
        "keyword_count": ("Let '{word}' appear no fewer than {n} times.",),
        "avoid": ("Stay away from the words '{first}' and '{second}'.", "Neither '{first}' nor '{second}' may occur."),
        "no_comma": ("Please do it without a single comma.", "Skip commas altogether."),
        "no_digits": ("Numerals such as 7 or 42 may not be used.", "There must not be a digit in it."),
        "no_exclamation": ("Never use '!' in the reply.",),
        "lowercase": ("Please type it without capital letters.", "Capitals are off limits; small letters throughout."),
        "uppercase": ("Shout it: upper case only.",),
        "quoted": ("Enclose the entire response in quotation marks of the double kind.",),
        "tags": ("Surround your reply with the markers <{tag}> and </{tag}>.",),
        "starts": ("Your response starts with the word '{word}'.", "Open with '{word}'."),
        "ends": ("The response finishes with this sentence: {phrase}", "Conclude by saying: {phrase}"),
        "title": ("A title such as <<A Good Title>> goes first.",),
        "postscript": ("Then append a postscript; it is introduced by {mark}",),
    },
}

PHRASES = {
    "calibration": (
        "Is there anything else I can help with?",
        "That is all there is to it.",
        "I hope this helps.",
        "Let me know what you think.",
    ),
    "dev": ("Feel free to ask for more.", "This concludes the answer."),
    "score": ("Thank you for reading.", "What would you like to know next?", "There is more to learn."),
}
NOTES = {
    "calibration": (
        "P.S. You can ask me for a shorter version.",
        "P.S. I can add examples if you need them.",
        "P.P.S. Other answers are possible too.",
    ),
    "dev": ("N.B. Ask again for further details.", "P.S. Tell me if a point is unclear."),
    "score": ("P.S. A longer version is available on request.", "P.P.S. Check the facts before you publish this."),
}
TAGS = {"calibration": ("answer", "reply", "text"), "dev": ("output", "result"), "score": ("response", "final", "body")}
KEYS = {
    "calibration": ("points", "items", "list"),
    "dev": ("entries", "results"),
    "score": ("values", "answers", "lines"),
}
COMMON = {
    "calibration": ("very", "really", "thing", "just", "basically", "obviously"),
    "dev": ("amazing", "simply", "totally", "perhaps"),
    "score": ("nice", "incredible", "somehow", "literally", "quite"),
}
FOLLOW = {
    "calibration": (
        "Now give me that answer again with a change.",
        "Same request, other form.",
        "Please redo your last reply.",
        "Good. Once more, differently.",
    ),
    "dev": ("Rework what you just wrote.", "Again, but with new rules."),
    "score": ("Revise the previous answer.", "One more version of it, please.", "Rewrite this for me."),
}
SYSTEM = {
    "calibration": (
        "You follow every instruction about form exactly.",
        "You are a careful writer. Constraints are binding.",
        "Answer helpfully and obey the requested format.",
    ),
    "dev": ("Form matters as much as content.", "Each constraint of the user is to be met."),
    "score": ("Stick to the rules that the user sets.", "You write exactly in the shape that is asked for."),
}
