"""How people word what they ask about a picture: frames, and the small grammar that fills them.

A frame is a string. ``[a|b|]`` is a choice (here also of nothing), ``<tell>`` a part that many frames share, and
``{the}`` a slot for what the question is about: a name such as "the red car", a place, a colour. A slot's value may
have choices of its own. So "<tell> what colour {the} is" stands for hundreds of wordings. A frame that ends without a
mark gets a question mark. People's spelling, haste and slips are added at the end (``typed``).

One wording in sixteen, chosen by its checksum, is never used in training: ``heldout_words.json`` asks with those.
"""

import random
import re
import zlib
from functools import lru_cache

PARTS = {
    "picture": "picture|picture|picture|image|photo|drawing|scene|pic|painting",
    "in": "||| in the <picture>| in this <picture>| here",
    "of": "||| of the <picture>| of this <picture>",
    "things": "things|things|objects|items",
    "thing": "thing|thing|object|item",
    "tell": "[can|could|will|would] you [please |]tell me|please tell me|tell me|do you know|I want to know"
    "|I would like to know|I wonder|can you say|can you see|let me know|any idea|please say",
    "big": "big|large",
    "small": "small|little",
    "bigger": "bigger|larger",
    "if": "if|whether",
    "see": "do you see|can you see|do you see|can you see|could you find|can you find|do we see|can I see",
    # Greetings and the like before a question, and words after it
    "opener": "[hi|hello|hey|hi there|good morning|excuse me|ok|okay|so|now|well|please|sorry|oh|hmm|great"
    "|one more question|another question|quick question|next question|a question|just curious][,|,|:|]"
    "|look at [the|this] <picture>.|here is a <picture>.|I have a question.|let us see.|I can not see [well|much]."
    "|thanks.|thank you.|nice <picture>.|I like [it|this <picture>].|tell me something.|help me.",
    "closer": ", please| please|, do you know|, can you tell|, in your opinion| then|, my friend",
    "land": "France|Italy|Spain|Germany|China|Japan|India|Brazil|Canada|Egypt|England|Poland|Sweden|Turkey|Kenya|Peru"
    "|Paris|London|Rome|Berlin|Africa|Asia|America|Mexico|Norway|Russia|the United States|my country|Europe",
    "few": "two|three|four|five|six|seven|eight|nine|ten|2|3|4|5|7|8|12|15|20|100",
    "work": "the Bible|the Titanic|gravity|electricity|the Mona Lisa|the war|the internet|chess|Einstein|Mozart"
    "|Shakespeare|Napoleon|Picasso|democracy|physics|love|the first film|the world cup|money|history|Google",
    # Places of the 3 x 3 grid
    "top left": "in the [top|upper] left[| corner]|in the [top|upper]-left corner|at the top left"
    "|[on|at] the upper left|top left",
    "top middle": "in the top middle|in the top centre|at the top in the middle|in the upper middle"
    "|in the middle at the top|at the top centre|top middle",
    "top right": "in the [top|upper] right[| corner]|in the [top|upper]-right corner|at the top right"
    "|[on|at] the upper right|top right",
    "middle left": "in the middle left|in the centre left|on the left in the middle|in the middle on the left"
    "|[at|in] the middle of the left side|middle left",
    "centre": "in the centre|in the middle|in the very [middle|centre]|right in the middle|at the centre|centre",
    "middle right": "in the middle right|in the centre right|on the right in the middle|in the middle on the right"
    "|[at|in] the middle of the right side|middle right",
    "bottom left": "in the [bottom|lower] left[| corner]|in the [bottom|lower]-left corner|at the bottom left"
    "|[on|at] the lower left|bottom left",
    "bottom middle": "in the bottom middle|in the bottom centre|at the bottom in the middle|in the lower middle"
    "|in the middle at the bottom|at the bottom centre|bottom middle",
    "bottom right": "in the [bottom|lower] right[| corner]|in the [bottom|lower]-right corner|at the bottom right"
    "|[on|at] the lower right|bottom right",
    # Whole columns and rows
    "left": "on the left|on the left[| hand] side|at the left|to the left|in the left [column|part|third]",
    "right": "on the right|on the right[| hand] side|at the right|to the right|in the right [column|part|third]",
    "top": "at the top|in the top row|in the upper [row|part|third]|at the very top|along the top",
    "bottom": "at the bottom|in the bottom row|in the lower [row|part|third]|at the very bottom|along the bottom",
    # Between two things
    "on the left of": "on the left of|to the left of|to the left of|left of|on the left side of",
    "on the right of": "on the right of|to the right of|to the right of|right of|on the right side of",
    "above": "above|above|over|higher up than|higher than",
    "below": "below|below|under|beneath|underneath|lower down than|lower than",
    "further left": "further left|further to the left|more to the left|closer to the left side|the one on the left",
    "further right": "further right|further to the right|more to the right|closer to the right side"
    "|the one on the right",
    "higher": "higher|higher up|further up|closer to the top|above the other|the upper one",
    "lower": "lower|lower down|further down|closer to the bottom|below the other|the lower one",
    "next to": "next to|next to|beside|right next to|close by",
}

# The only wordings of ``heldout.json`` and ``unseen.json``; some of the training's questions have them too. A slot gets
# the first of its choices.
CLASSIC = {
    "existence": ["Is there {a}?", "Do you see {a}?"],
    "colour": ["What colour is {the}?", "Of what colour is {the}?"],
    "kind": ["What is the {colour} thing?"],
    "at": ["What is {at}?"],
    "count": ["How many {many} are there?"],
    "position": ["Where is {the}?"],
    "size": ["Is {the} small or large?", "Is {the} large or small?", "How big is {the}?"],
    "relation": ["Is {the} {one} or {two} {other}?"],
    "setting": ["What is the setting?", "Where was this picture made?"],
    "leaving": ["If all the {gone} left, how many things would remain?"],
    "sailing": ["Could one sail here, and why?"],
    "first": ["Walking from {start} to {end}, what does one meet first?"],
    "larger": ["Which is larger, {the} or {other}?"],
}
CLASSIC["across"] = CLASSIC["down"] = CLASSIC["relation"]

FRAMES = {
    # ---- one thing: {the} is "the car" or "the red car" ----
    "colour": [
        "what colour is {the}<in>",
        "what colour is {the}<in>",
        "[which|of what|of which|in what] colour is {the}<in>",
        "what is the colour of {the}<in>",
        "what [colour|kind of colour|sort of colour] does {the} have<in>",
        "<tell> what colour {the} [is|has]<in>",
        "<tell> the colour of {the}<in>",
        "what colour would you say {the} is",
        "what colour do you think {the} is",
        "how would you describe the colour of {the}",
        "[the |]colour of {the}<in>",
        "{the}'s colour",
        "what is {the}'s colour",
        "[this|here is] {the}[,|:|] what colour is it",
        "{the}[,|:] what colour is it",
        "{the} [is|has] [what|which] colour",
        "I see {the}. what colour is it",
        "look at {the}. what colour [is it|does it have]",
        "[what|which] colour [was|did they paint|did they draw|did someone give] {the}",
        "in [what|which] colour is {the} [painted|drawn|shown]",
        "name the colour of {the}.",
        "say the colour of {the}.",
        "give me the colour of {the}.",
        "what colour {the}",
        "{the} colour",
    ],
    "colour or": [
        "is {the} {one} or {two}",
        "is {the} {one} or [is it |]{two}",
        "<tell> <if> {the} is {one} or {two}",
        "{the}[,|:] [is it |]{one} or {two}",
        "what colour is {the}, {one} or {two}",
        "would you say {the} is {one} or {two}",
        "look at {the}. is it {one} or {two}",
        "{the} is {one} or {two}",
    ],
    "position": [
        "where is {the}<in>",
        "where is {the}<in>",
        "where [exactly |]is {the}",
        "where [can|could|do|would] [I|you|we|one] [find|see] {the}<in>",
        "<tell> where {the} is<in>",
        "<tell> where [to find|I find|you see|I can see] {the}",
        "<tell> the [position|place|location] of {the}",
        "in which [part|corner|place|area] of the <picture> is {the}",
        "which [part|corner|place|area] of the <picture> is {the} in",
        "what is the [position|place|location] of {the}<in>",
        "[the |][position|place|location] of {the}",
        "whereabouts is {the}<in>",
        "{the}[,|:] where is it",
        "where in the <picture> is {the}",
        "[find|show me|point to] {the}.",
        "show me where {the} is.",
        "I [can not|do not] [find|see] {the}. where is it",
        "I am looking for {the}. where is it",
        "where [should|must|do] I look for {the}",
        "where [was|did they put|did they draw|did someone draw] {the}",
        "at [which|what] place is {the}",
        "{the} is where",
        "where do you see {the}",
        "where {the}",
        "where is {the} to be found",
        "where has {the} [gone|been put|been drawn]",
        "how do I find {the}",
        "[can you |]help me [find|look for] {the}.",
        "is {the} [on the left or on the right|left or right|at the top or at the bottom|high up or low down]",
        "{the}[,|:] where[ is it|]",
        "where is {the} at",
        "[find|point to|point at|search for|look for] {the}<in>.",
        "where [on|in] the <picture> is {the}",
    ],
    "size": [
        "how <big> is {the}<in>",
        "how <big> is {the}<in>",
        "is {the} <big> or <small>",
        "is {the} <small> or <big>",
        "[what|which|of what] size is {the}<in>",
        "what is the size of {the}<in>",
        "what size does {the} have",
        "what size would you say {the} is",
        "<tell> how <big> {the} is",
        "<tell> <if> {the} is [<big> or <small>|<small> or <big>]",
        "<tell> the size of {the}",
        "<tell> what size {the} [is|has]",
        "[the |]size of {the}",
        "{the}'s size",
        "what is {the}'s size",
        "is {the} a [<big> one or a <small>|<small> one or a <big>] one",
        "would you [call {the}|say {the} is] [<big> or <small>|<small> or <big>]",
        "{the}[,|:] [<big> or <small>|<small> or <big>]",
        "{the}[,|:] how <big> is it",
        "look at {the}. is it [<big> or <small>|<small> or <big>]",
        "I see {the}. how <big> is it",
        "how <big> [was|did they draw|would you say is] {the}",
        "how <small> is {the}",
        "[what|how] about the size of {the}",
        "name the size of {the}.",
    ],
    # ---- is it there? {a} is "a car", "a red car", "a dog"; {many} is "cars", "dogs", "people" ----
    "existence": [
        "is there {a}<in>",
        "is there {a}<in>",
        "<see> {a}<in>",
        "<see> {a}<in>",
        "is there {a} [anywhere|somewhere]<in>",
        "is there [also |maybe |perhaps |really |possibly ]{a}<in>",
        "<tell> <if> there is {a}<in>",
        "<tell> <if> you [can |]see {a}<in>",
        "{a}<in>",
        "does [the|this] <picture> [show|have] {a}",
        "does [it|the <picture>|this <picture>] have {a} in it",
        "is {a} [visible|there|here|to be seen|to be found|in it]",
        "is {a} in [the|this] <picture>",
        "is {a} [shown|drawn|painted] [here|anywhere|in the <picture>]",
        "there is {a}<in>, [right|isn't there|correct|no|yes]",
        "I [need|want|am looking for|am searching for] {a}. is there one",
        "have you [seen|found] {a}<in>",
        "has [it|the <picture>] got {a} in it",
        "did [they|someone|you] draw {a}",
        "[can|will|would|could] I find {a}<in>",
        "is it true that there is {a}<in>",
        "[I think|I guess|it seems|maybe] there is {a}. is [that right|that true|there]",
        "can {a} be [seen|found]<in>",
        "do you have {a}<in>",
        "any sign of {a}",
        "would you say there is {a}<in>",
        "look for {a}. is there one",
        "check <if> there is {a}<in>.",
        "{a}[,|:] [yes or no|is there one|do you see one]",
        "yes or no[:|,] [is there |]{a}<in>",
        "[see|got|any sign of] {a}<in>",
        "<tell> [yes or no|if yes or no][,|:] is there {a}",
        "{bare}<in>",
        "any {bare}<in>",
        "{bare}[,|:]<in> [yes or no|is there one|do you see one|anywhere]",
        "[is there|do you see|see] {a}[, yes or no| or not]",
    ],
    "existence many": [
        "are there [any |]{many}<in>",
        "are there any {many}<in>",
        "<see> [any |]{many}<in>",
        "<see> any {many}<in>",
        "any {many}<in>",
        "[got|see|seen] any {many}",
        "are there any {many} [anywhere|somewhere]<in>",
        "<tell> <if> there are [any |]{many}<in>",
        "<tell> <if> you [can |]see any {many}",
        "{many}<in>",
        "does [the|this] <picture> [show|have] any {many}",
        "are [any |]{many} [visible|there|here|to be seen|to be found|shown|in it]",
        "are [any |]{many} in [the|this] <picture>",
        "have you [seen|found|got] any {many}<in>",
        "do any {many} appear<in>",
        "did [they|someone] draw any {many}",
        "I [need|want|am looking for] {many}. are there any",
        "[can|will|would] I find any {many}<in>",
        "there are {many}<in>, [right|aren't there|correct]",
        "are there [also |maybe |perhaps ]{many}<in>",
        "can any {many} be [seen|found]<in>",
        "is it true that there are {many}<in>",
        "look for {many}. are there any",
        "check <if> there are any {many}<in>.",
    ],
    "existence mass": [
        "is there [any |some |]{many}<in>",
        "<see> [any |some |]{many}<in>",
        "any {many}<in>",
        "<tell> <if> there is any {many}<in>",
        "<tell> <if> you [can |]see any {many}",
        "does [the|this] <picture> [show|have] any {many}",
        "is [any |]{many} [visible|there|here|to be seen|shown|in it]",
        "have you [seen|found|got] any {many}<in>",
        "I [need|want|am looking for] {many}. is there any",
        "[can|will|would] I find any {many}<in>",
        "{many}<in>",
    ],
    "anything of a colour": [
        "is there [anything|something] {colour}<in>",
        "<see> [anything|something] {colour}<in>",
        "is [anything|something] {colour}<in>",
        "are any [of the |]<things> {colour}",
        "any {colour} <things><in>",
        "are there any {colour} <things><in>",
        "is there [a|any] {colour} <thing><in>",
        "anything {colour}<in>",
        "<tell> <if> [anything|something] is {colour}",
        "<tell> <if> there is anything {colour}<in>",
        "have you [seen|found] anything {colour}",
        "does [the|this] <picture> have anything {colour} in it",
        "is any <thing><in> {colour}",
        "I [want|am looking for] something {colour}. is there anything",
    ],
    "anybody": [
        "is [anybody|anyone|somebody|someone] [there|here|in the <picture>|in this <picture>]",
        "<see> [anybody|anyone|somebody|someone]<in>",
        "who [is|do you see|can you see] [in the <picture>|there|here]",
        "who is that<in>",
        "<tell> <if> [anybody|anyone] is [there|here|in the <picture>]",
        "[anybody|anyone][ there| here| in the <picture>|]",
        "does [the|this] <picture> show [anybody|anyone]",
    ],
    # ---- what is it? ----
    "kind": [
        "what is the {colour} <thing><in>",
        "what is the {colour} <thing>",
        "what is the {colour} one",
        "what is {colour}<in>",
        "<tell> what the {colour} <thing> is",
        "<tell> what is {colour}",
        "what [kind|sort] of <thing> is [the {colour} one|{colour}]",
        "which <thing> is {colour}",
        "what is the <thing> that is {colour}",
        "what is [that|this] {colour} <thing>",
        "the {colour} <thing>[,|:] what is it",
        "I see a {colour} <thing>. what is it",
        "I see something {colour}. what is it",
        "look at the {colour} <thing>. what is it",
        "there is something {colour}. what is it",
        "what would you call the {colour} <thing>",
        "what does the {colour} <thing> show",
        "name the {colour} <thing>.",
        "what do you see that is {colour}",
        "which one is {colour}",
    ],
    "at": [
        "what is {at}<of>",
        "what is {at}<of>",
        "what is there {at}<of>",
        "what [do|can] you see {at}<of>",
        "what <thing> is {at}<of>",
        "<tell> what is {at}<of>",
        "<tell> what [you see|one sees|there is] {at}",
        "which <thing> is {at}<of>",
        "what can be [seen|found] {at}<of>",
        "what [have they|did they|did someone] [drawn|draw|put] {at}",
        "{at}[,|:] what is there",
        "{at}[,|:] what do you see",
        "look {at}. what [do you see|is there]",
        "name the <thing> [that is |]{at}.",
        "describe what is {at}.",
        "what about {at}<of>",
        "what is [the|that|this] <thing> {at}",
        "is there [anything|something] {at}<of>",
        "<see> [anything|something] {at}<of>",
        "what would I find {at}",
        "what kind of <thing> is {at}",
        "what does the <picture> show {at}",
        "what {at}",
        "{at}",
        "{at}[,|:] what is it",
        "what is it that is {at}",
        "what is [placed|standing|drawn] {at}",
        "if I look {at}, what [do|will|would] I [see|find]",
        "what is the one {at}",
    ],
    "colour at": [
        "what colour is the <thing> {at}",
        "what is the colour of the <thing> {at}",
        "<tell> the colour of the <thing> {at}",
        "<tell> what colour the <thing> {at} is",
        "the <thing> {at}[,|:] what colour is it",
        "what colour do you see {at}",
    ],
    "size at": [
        "how <big> is the <thing> {at}",
        "is the <thing> {at} [<big> or <small>|<small> or <big>]",
        "what size is the <thing> {at}",
        "<tell> how <big> the <thing> {at} is",
        "the <thing> {at}[,|:] how <big> is it",
    ],
    # ---- how many? {many} is "boats", "red things" or "things" ----
    "count": [
        "how many {many} are there<in>",
        "how many {many} are there<in>",
        "how many {many} are [shown|visible|drawn|in the <picture>]",
        "how many {many} [do|can|could] [you|we|I] [see|count|find]<in>",
        "how many {many}<in>",
        "<tell> how many {many} there are<in>",
        "<tell> how many {many} you [see|can see|count|find]",
        "<tell> the number of {many}<in>",
        "what is the number of {many}<in>",
        "[the |]number of {many}<in>",
        "count the {many}<in>.",
        "[can|could|will] you count the {many}<in>",
        "count [all |all the |how many ]{many}[ there are|].",
        "the <picture> has how many {many}",
        "how many {many} does [the|this] <picture> [have|show]",
        "{many}[,|:] how many",
        "there are how many {many}<in>",
        "I [want|would like|need] to count the {many}. how many are there",
        "how many {many} did [they|someone] draw",
        "how many {many} [appear|exist]<in>",
        "how many {many} in [all|total]",
        "in [all|total], how many {many} are there",
        "look at the {many}. how many are there",
        "give me the number of {many}.",
        "how many {many} have you [found|seen|got]",
        "what number of {many} [is there|do you see]",
        "how many {many} would you say there are",
        "[how many|count]: {many}",
        "[add up|sum up] [the|all the] {many}.",
        "please count {many}.",
        "what number of {many} [is|are] there",
    ],
    # ---- where are two things? {one} and {two} are "above" and "below", or the sides ----
    "relation": [
        "is {the} {one} or {two} {other}",
        "is {the} {one} or {two} {other}",
        "<tell> <if> {the} is {one} or {two} {other}",
        "{the}[,|:] is it {one} or {two} {other}",
        "is {the} {one} {other} or {two} it",
        "is {the} {one} {other}[,|] or is it {two} {other}",
        "would you say {the} is {one} or {two} {other}",
        "do you see {the} {one} or {two} {other}",
        "{the} and {other}[.|:] is {the} {one} or {two} {other}",
        "look at {the} and {other}. is {the} {one} or {two} {other}",
        "{the}[,|:] {one} or {two} {other}",
        "{one} or {two} {other}[,|:] where is {the}",
        "where is {the}, {one} or {two} {other}",
        "do I find {the} {one} or {two} {other}",
        "[where is|where do you see|where do I find] {the} [compared to|compared with|relative to|seen from] {other}",
        "how is {the} placed [compared to|compared with|relative to] {other}",
    ],
    # {way} is "further left", "further right", "higher" or "lower"
    "further": [
        "[which|what] [one |<thing> |]is {way}, {the} or {other}",
        "[which|what] is {way}[:|] {the} or {other}",
        "<tell> which is {way}, {the} or {other}",
        "{the} or {other}[,|:] which [one |]is {way}",
        "{the} and {other}[.|:] which [one |]is {way}",
        "of {the} and {other}, which is {way}",
        "is {the} or {other} {way}",
        "who is {way}, {the} or {other}",
        "look at {the} and {other}. which [one |]is {way}",
        "which [one |]would you say is {way}, {the} or {other}",
        "which of the two is {way}, {the} or {other}",
        "[which|what] [stands|sits|hangs] {way}, {the} or {other}",
    ],
    "across": [
        "on [which|what] side of {other} is {the}",
        "[which|what] side of {other} is {the} on",
        "<tell> on which side of {other} {the} is",
        "is {the} on the [left or right|left or on the right|right or left] of {other}",
        "seen from {other}, is {the} on the left or on the right",
    ],
    "down": [
        "is {the} [higher or lower|lower or higher] than {other}",
        "is {the} [higher up or lower down|lower down or higher up] than {other}",
        "<tell> <if> {the} is higher or lower than {other}",
        "compared to {other}, is {the} higher or lower",
    ],
    # {rel} is "above", "to the left of", "next to" ...
    "near": [
        "what is {rel} {the}<in>",
        "what is {rel} {the}<in>",
        "what is there {rel} {the}",
        "what [do|can] you see {rel} {the}",
        "which <thing> is {rel} {the}",
        "which <things> are {rel} {the}",
        "<tell> what is {rel} {the}",
        "<tell> what you see {rel} {the}",
        "is there [anything|something] {rel} {the}",
        "<see> [anything|something] {rel} {the}",
        "what can be [seen|found] {rel} {the}",
        "{rel} {the}[,|:] what is there",
        "name [what|everything that] is {rel} {the}.",
        "list the <things> {rel} {the}.",
        "look at {the}. what is {rel} it",
        "I see {the}. what is {rel} it",
        "what did they draw {rel} {the}",
        "what would I find {rel} {the}",
        "what {rel} {the}",
        "anything {rel} {the}",
    ],
    # ---- the whole picture ----
    "setting": [
        "what is the setting<of>",
        "where was [this|the] <picture> [made|taken|drawn]",
        "where is this",
        "where are we",
        "what [kind|sort] of place is [this|it|that|shown]",
        "what place [is this|is it|is shown|does the <picture> show]",
        "what is the background<of>",
        "what is in the background<of>",
        "what does the background show",
        "[what|which] [kind|sort|type] of landscape [is this|is it|do you see|is shown]",
        "[what|which] landscape is this",
        "<tell> where this is",
        "<tell> where [this|the] <picture> was [made|taken|drawn]",
        "<tell> what the setting is",
        "what is the scenery[ like|]",
        "what scenery [is this|is shown]",
        "what are the surroundings",
        "where does this [take place|happen]",
        "where does the <picture> take place",
        "[in|at] what [kind|sort] of place [is this|are we|are the <things>]",
        "where [are|do you see] all [these|the] <things>",
        "what is behind the <things>",
        "describe the [background|setting|landscape|surroundings].",
        "name the [background|setting|landscape].",
        "[background|setting|landscape|scenery]",
        "what environment is this",
        "what [kind|sort] of [background|setting|surroundings] [is it|is this|do you see]",
    ],
    "is it this place": [
        "is this {place}",
        "is it {place}",
        "are we [in|at] {place}",
        "does the <picture> show {place}",
        "is {place} [shown|in the background]",
        "is the [background|setting|landscape] {place}",
        "<tell> <if> this is {place}",
        "I think this is {place}. [am I right|is that right]",
        "was [this|the] <picture> [made|taken] [in|at] {place}",
    ],
    "is there this ground": [
        "is there [any |]{many}<in>",
        "<see> [any |some |]{many}<in>",
        "any {many}<in>",
        "<tell> <if> there is any {many}<in>",
        "does [the|this] <picture> [show|have] any {many}",
        "have you [seen|found] any {many}<in>",
    ],
    "day": [
        "is it [day or night|night or day]<in>",
        "is it daytime or night[time|]<in>",
        "is it [light or dark|dark or light]<in>",
        "[what|which] time of [day|the day] is it<in>",
        "<tell> <if> it is [day or night|night or day]<in>",
        "is this [at night or in the daytime|by day or by night|during the day or at night]",
        "was [this|the] <picture> [made|taken|drawn] [by day or by night|at night or in the daytime]",
        "[day or night|night or day]",
        "does the <picture> show [day or night|night or day|a day or a night]",
        "when was [this|the] <picture> [made|taken|drawn], [by day or by night|day or night]",
        "<tell> what time of day it is<in>",
        "would you say it is day or night",
        "is the sky [dark or light|light or dark]",
    ],
    "night": [
        "is it night<in>",
        "is it [dark|night time|nighttime|late in the night]<in>",
        "is this [a night <picture>|at night|by night|the night]",
        "was [this|the] <picture> [made|taken|drawn] at night",
        "<tell> <if> it is night",
        "it is night, [right|isn't it|correct]",
        "is the sky [dark|black]",
    ],
    "daytime": [
        "is it [day|daytime|light|bright]<in>",
        "is this [in the daytime|by day|during the day]",
        "was [this|the] <picture> [made|taken|drawn] [by day|in the daytime|during the day]",
        "<tell> <if> it is day",
        "it is day, [right|isn't it|correct]",
    ],
    "about": [
        "what is [the|this] <picture> about",
        "what is it about",
        "what is this about",
        "what does [the|this] <picture> show",
        "what [is shown|do they show|is drawn] [here|in the <picture>]",
        "<tell> what [the|this] <picture> [is about|shows]",
        "what is going on<in>",
        "what is happening<in>",
        "what [kind|sort] of <picture> is [this|it]",
        "sum up [the|this] <picture>.",
        "[the|this] <picture> in one sentence.",
        "what [is this|is that]",
        "tell me about [the|this] <picture>.",
        "what can you [say|tell me] about [the|this] <picture>",
        "what [have you got|do we have] here",
        "what am I looking at",
        "what did [they|someone] draw",
        "explain [the|this] <picture>.",
    ],
    "list": [
        "what do you see<in>",
        "what do you see",
        "what can [you|I|we] see<in>",
        "what is there<in>",
        "what is in [the|this] <picture>",
        "what [all |]is there to see<in>",
        "list [the|all|all the] <things><in>.",
        "name [the|all|all the] <things><in>.",
        "[list|name] everything [you see|you can see|in the <picture>].",
        "[which|what] <things> are there<in>",
        "[which|what] <things> [do|can] you [see|find]<in>",
        "[which|what] <things> [are shown|are visible|does the <picture> show|did they draw]",
        "<tell> what you [can |]see<in>",
        "<tell> what is in [the|this] <picture>",
        "<tell> which <things> there are<in>",
        "tell me [everything|all] you [can |]see.",
        "give me a list of [the|all] <things><in>.",
        "can you [list|name] [the|all the] <things><in>",
        "what [does the <picture> have|is] in it",
        "[make|write] a list of [everything you see|what you see].",
        "everything you see[, please|].",
        "what are the <things><in>",
        "show me what [is|you see] in the <picture>.",
    ],
    "list of a colour": [
        "[which|what] <things> are {colour}<in>",
        "[list|name] [the|all|all the] {colour} <things><in>.",
        "what {colour} <things> [are there|do you see|can you see]<in>",
        "what are the {colour} <things><in>",
        "what is {colour} in [the|this] <picture>",
        "<tell> [which|what] <things> are {colour}",
        "which of the <things> are {colour}",
        "[list|name|show me] everything [that is |]{colour}.",
        "what all is {colour}<in>",
    ],
    "colours": [
        "[which|what] colours are there<in>",
        "[which|what] colours [do|can] you [see|find]<in>",
        "[which|what] colours [are used|are shown|does the <picture> have|do the <things> have|did they use]<in>",
        "[which|what] colours are in [the|this] <picture>",
        "<tell> [which|what] colours there are<in>",
        "<tell> the colours of the <things>",
        "[list|name] [the|all|all the] colours<in>.",
        "what are the colours<in>",
        "what are the colours of the <things><in>",
        "[what|which] colours are the <things><in>",
        "what colours",
        "give me [the|all the] colours.",
        "in [which|what] colours are the <things> [painted|drawn|shown]",
        "how are the <things> coloured",
    ],
    "extreme": [
        "what is the {most} <thing><in>",
        "what is the {most} [one|of the <things>|of them all]",
        "which <thing> is [the |]{most}<in>",
        "which [of the <things>|of them|one] is [the |]{most}",
        "what is {most}<in>",
        "<tell> what the {most} <thing> is<in>",
        "<tell> which <thing> is the {most}",
        "name the {most} <thing>.",
        "the {most} <thing>[,|:] [what is it|which one is it]",
        "which one would you call the {most}",
        "find the {most} <thing>.",
        "what do you see that is {most}",
        "the {most} <thing>",
        "of all the <things>, which is {most}",
        "[which|what] is the {most}",
        "{most} <thing>",
        "[show me|point at|point to|pick|give me] the {most} [<thing>|one].",
        "the {most} one",
        "the {most} <thing> is [what|which one]",
        "is there one that is the {most}",
    ],
    "list of a size": [
        "[which|what] <things> are {size}<in>",
        "[list|name] [the|all the] {size} <things><in>.",
        "what are the {size} <things><in>",
        "what is {size}<in>",
        "<tell> [which|what] <things> are {size}",
        "which of the <things> are {size}",
    ],
    # ---- two things ----
    "larger": [
        "which [one |]is <bigger>, {the} or {other}",
        "which is <bigger>[:|] {the} or {other}",
        "which is the <bigger> [one|of the two|<thing>], {the} or {other}",
        "what is <bigger>, {the} or {other}",
        "<tell> which is <bigger>, {the} or {other}",
        "{the} or {other}[,|:] which is <bigger>",
        "{the} and {other}[.|:] which [one |]is <bigger>",
        "[compare|look at] {the} and {other}. which [one |]is <bigger>",
        "of {the} and {other}, which is <bigger>",
        "would you say {the} or {other} is <bigger>",
        "is {the} or {other} <bigger>",
        "who is <bigger>, {the} or {other}",
    ],
    "smaller": [
        "which [one |]is smaller, {the} or {other}",
        "which is the smaller [one|of the two|<thing>], {the} or {other}",
        "what is smaller, {the} or {other}",
        "<tell> which is smaller, {the} or {other}",
        "{the} or {other}[,|:] which is smaller",
        "{the} and {other}[.|:] which [one |]is smaller",
        "[compare|look at] {the} and {other}. which [one |]is smaller",
        "of {the} and {other}, which is smaller",
        "is {the} or {other} smaller",
    ],
    "bigger than": [
        "is {the} {more} than {other}",
        "is {the} [really |much |also ]{more} than {other}",
        "<tell> <if> {the} is {more} than {other}",
        "would you say {the} is {more} than {other}",
        "do you think {the} is {more} than {other}",
        "{the} is {more} than {other}, [right|isn't it|correct]",
        "is it true that {the} is {more} than {other}",
        "compared [to|with] {other}, is {the} {more}",
    ],
    "same size": [
        "are {the} and {other} [the same size|of the same size|equally <big>|of equal size]",
        "do {the} and {other} have the same size",
        "is {the} [as <big> as|the same size as|of the same size as] {other}",
        "<tell> <if> {the} and {other} are the same size",
        "{the} and {other}[,|:] [same size|are they the same size|are they equally <big>]",
        "compare {the} and {other}. are they the same size",
        "are both {the} and {other} the same size",
        "would you say {the} and {other} are the same size",
        "is the size of {the} and {other} the same",
    ],
    "same colour": [
        "are {the} and {other} [the same colour|of the same colour]",
        "do {the} and {other} have the same colour",
        "is {the} [the same colour as|of the same colour as] {other}",
        "does {the} have the same colour as {other}",
        "<tell> <if> {the} and {other} are the same colour",
        "{the} and {other}[,|:] [same colour|are they the same colour]",
        "compare {the} and {other}. are they the same colour",
        "do {the} and {other} share a colour",
        "would you say {the} and {other} are the same colour",
        "is the colour of {the} and {other} the same",
    ],
    # ---- is it so? {is} is what is asked about {the}: "red", "big", "in the top left", "above the tree" ----
    "check": [
        "is {the} {is}",
        "is {the} {is}",
        "is {the} [really |also |maybe ]{is}",
        "<tell> <if> {the} is {is}",
        "{the} is {is}, [right|isn't it|correct|is that right|no|yes]",
        "would you say [that |]{the} is {is}",
        "do you think [that |]{the} is {is}",
        "is it true that {the} is {is}",
        "is it [right|correct] that {the} is {is}",
        "{the}[,|:] is it {is}",
        "I think {the} is {is}. [is that right|am I right|is it]",
        "{the} is {is}. [is that right|true or false|right]",
        "look at {the}. is it {is}",
        "I see {the}. is it {is}",
        "can you see <if> {the} is {is}",
        "check <if> {the} is {is}.",
        "{the} {is}",
        "is {the} {is}, [yes or no|right or wrong|true or false]",
        "[did they|did someone] [paint|draw|put|make] {the} {is}",
        "would you call {the} {is}",
        "is it {is}, {the}",
        "I say {the} is {is}. [do you agree|yes|right]",
    ],
    # {some} is a number, {single} one of {many}: "boat" of "boats"
    "more than one": [
        "is there more than one {single}<in>",
        "<see> more than one {single}<in>",
        "<tell> <if> there is more than one {single}<in>",
        "there is more than one {single}<in>, [right|isn't there|correct]",
        "is there more than a single {single}<in>",
        "are there several {many}<in>",
        "<see> several {many}<in>",
        "is it true that there are several {many}",
        "does the <picture> [show|have] more than one {single}",
    ],
    "check count": [
        "are there {some} {many}<in>",
        "<see> {some} {many}<in>",
        "<tell> <if> there are {some} {many}<in>",
        "there are {some} {many}<in>, [right|aren't there|correct]",
        "I [see|count] {some} {many}. is that right",
        "is it true that there are {some} {many}<in>",
        "does the <picture> [show|have] {some} {many}",
        "are {some} {many} [there|in the <picture>|to be seen]",
    ],
    # ---- several things of a kind ----
    "several colour": [
        "[what|which] [colour|colours] are the {many}<in>",
        "what are the colours of the {many}",
        "<tell> [what|which] [colour|colours] the {many} [are|have]",
        "[what|which] colours do the {many} have",
        "colours of the {many}",
        "the {many}[,|:] what colour are they",
    ],
    "several position": [
        "where are the {many}<in>",
        "where [can|do] [you|I] [see|find] the {many}",
        "<tell> where the {many} are<in>",
        "in which [places|parts of the <picture>] are the {many}",
        "the {many}[,|:] where are they",
        "[show me|find] all the {many}.",
    ],
    "several size": [
        "how <big> are the {many}",
        "are the {many} [<big> or <small>|<small> or <big>]",
        "[what|which] size are the {many}",
        "<tell> how <big> the {many} are",
        "the {many}[,|:] how <big> are they",
    ],
    # ---- thinking ----
    "leaving": [
        "if all the {gone} [left|went away|disappeared|were gone], how many <things> would [remain|stay|be left]",
        "how many <things> [remain|stay|are left] [if|when] [all |]the {gone} [leave|go away|disappear|are taken away]",
        "how many <things> would [remain|stay|be left] if [all |]the {gone} [left|went away|disappeared|were removed]",
        "without the {gone}, how many <things> [are there|are left|do you see|would there be]",
        "how many <things> are there without the {gone}",
        "take away [all the|the] {gone}. how many <things> [are left|remain]",
        "[imagine|suppose|say] the {gone} [left|were gone]. how many <things> would [remain|be left|stay]",
        "how many <things> are not {not}",
        "how many <things> [do you see|are there] that are not {not}",
        "count the <things> that are not {not}.",
        "<tell> how many <things> are not {not}",
        "<tell> how many <things> [stay|remain|are left] without the {gone}",
        "if I [took away|removed|hid] the {gone}, how many <things> would [you see|be left|remain]",
        "the {gone} leave. how many <things> [stay|remain|are left]",
    ],
    "sailing": [
        "could [one|you|I|we|someone] sail here, and why",
        "[can|could] [one|you|I|we|someone] [sail|go sailing] [here|in the <picture>][, and why|]",
        "is it possible to [sail|go sailing] here[, and why|]",
        "would sailing be possible here",
        "is this a [good |]place [for sailing|to sail]",
        "<tell> <if> one [can|could] sail here",
        "[I want|we want|I would like] to [sail|go sailing]. [can I do it here|is it possible here|could I]",
        "can [someone|anybody|anyone] [sail|go sailing] here",
        "is there a boat and the sea to sail",
    ],
    "first": [
        "walking from {start} to {end}, what [does one|do you|do I|would you] meet first",
        "[going|walking|moving|reading] from {start} to {end}, [what|which <thing>] comes first",
        "[what|which <thing>] comes first from {start} to {end}",
        "[what|which <thing>] is [furthest|farthest] to the {start}",
        "[what|which <thing>] is the {start}most [one|<thing>]",
        "what is the {start}most <thing><in>",
        "if I [walk|go|come] from {start} to {end}, what do I [meet|see|pass] first",
        "[what|which <thing>] is the first [one |<thing> |]from the {start}",
        "I come from the {start}. what do I [meet|see] first",
        "<tell> what comes first from {start} to {end}",
        "starting on the {start}, what is the first <thing>",
    ],
    # ---- descriptions ----
    "describe one": [
        "describe {the}<in>.",
        "tell me [more |something |]about {the}.",
        "[can|could] you describe {the}",
        "what [can you say|do you know] about {the}",
        "what does {the} look like",
        "how does {the} look",
        "what is {the} like",
        "<tell> what {the} looks like",
        "give me a description of {the}.",
        "{the}[,|:] describe it",
    ],
    "describe": [
        "describe [the|this] <picture>[ in detail| to me| for me|].",
        "describe [what you see|everything you see|it in detail].",
        "[can|could|would] you [please |]describe [the|this] <picture>[ in detail| to me|]",
        "[give me|I want|I would like] a [full|long|detailed] description[ of the <picture>|].",
        "tell me everything about [the|this] <picture>.",
        "[write|tell] a [long|detailed] description of [the|this] <picture>.",
        "explain [the|this] <picture> in detail.",
        "what [exactly|all] is in [the|this] <picture>? describe it [in detail|fully].",
    ],
    "brief": [
        "describe [the|this] <picture> [briefly|in short|in a few words|in one sentence|shortly].",
        "[give me|write] a [short|brief] description[ of the <picture>|].",
        "[can|could] you [describe|sum up] [the|this] <picture> [briefly|in one sentence|in short]",
        "a [short|brief] description, please.",
        "[what is a good title|give me a title] for [the|this] <picture>.",
        "a title for [the|this] <picture>, please.",
    ],
    # ---- what leans on the question before ----
    "it colour": [
        "what colour is it",
        "[and |]what colour is it",
        "[and |]what [about|is] its colour",
        "[and |]which colour[ is it| does it have|]",
        "what colour does it have",
        "<tell> what colour it is",
        "and the colour[ of it|]",
        "and [its|the] colour",
        "of what colour",
        "what colour",
    ],
    "it position": [
        "where is it",
        "[and |]where is it<in>",
        "[and |]where",
        "[and |]where [exactly|in the <picture>][ is it|]",
        "<tell> where it is",
        "where [do you see|can I find|can I see] it",
        "what is its [place|position]",
        "in which [part|corner]",
        "and its [place|position]",
    ],
    "it size": [
        "how <big> is it",
        "[and |]how <big> is it",
        "[and |]is it [<big> or <small>|<small> or <big>]",
        "[and |]what [about|is] its size",
        "[and |]what size is it",
        "[and |]how <big>",
        "<tell> how <big> it is",
        "[<big> or <small>|<small> or <big>]",
        "and the size",
    ],
    "it check": [
        "is it {is}",
        "[and |so |but ]is it {is}",
        "[and |]is it [really |also ]{is}",
        "it is {is}, [right|isn't it|correct]",
        "<tell> <if> it is {is}",
        "do you think it is {is}",
        "would you say it is {is}",
        "{is}",
    ],
    "it near": [
        "what is {rel} it",
        "[and |]what is {rel} it",
        "[and |]what do you see {rel} it",
        "is there anything {rel} it",
        "[and |]{rel} it",
        "anything {rel} it",
        "<tell> what is {rel} it",
    ],
    "and the": [
        "and {the}",
        "and {the}",
        "[and |]what about {the}",
        "[and |]how about {the}",
        "{the}",
        "now {the}",
        "the same for {the}",
        "[and |]the same question for {the}",
        "and for {the}",
        "{the} too",
    ],
    "and a": [
        "and {a}",
        "[and |]what about {a}",
        "[and |]how about {a}",
        "or {a}",
        "{a} [then|maybe|perhaps]",
        "and is there {a}",
        "[and|or] do you see {a}",
        "{a}",
        "is there {a} too",
    ],
    "and many": [
        "and {many}",
        "[and |]what about [the |]{many}",
        "[and |]how about [the |]{many}",
        "and how many {many}",
        "now the {many}",
        "[and |]{many}",
        "the same for {many}",
    ],
    "and at": [
        "and {at}",
        "and {at}",
        "[and |]what about {at}",
        "[and |]how about {at}",
        "and what is {at}",
        "now {at}",
        "{at}",
    ],
    "how many are there": [
        "how many are there",
        "[and |]how many[ are there| are they| do you see| of them|]",
        "how many of them [are there|do you see|can you see]",
        "<tell> how many there are",
        "count them.",
    ],
    "else": [
        "anything else<in>",
        "[and |]anything else",
        "[and |]what else",
        "is there anything else<in>",
        "[and |]what else [is there|do you see|can you see]<in>",
        "do you see anything else",
        "<tell> what else [there is|you see]",
        "[are there|do you see] [any |]other <things>",
        "[and |]the other <things>",
        "what other <things> are there",
        "what are the others",
        "name the others.",
    ],
    "sure": [
        "are you sure",
        "are you [really |quite |absolutely ]sure[ about that|]",
        "really",
        "sure",
        "is that [right|true|correct|so]",
        "are you certain",
        "is that [really |]true",
        "do you [really |]mean [it|that]",
        "you are [quite |]sure",
        "is that your answer",
    ],
    "again": [
        "[can|could] you [check|look] [that |]again",
        "[please |]look again.",
        "[please |]check again.",
        "I do not believe [you|it|that].",
        "I am not so sure.",
        "[I think |]you [must be|are] wrong.",
        "that is [wrong|not right|not true].",
        "[can you |please |]say that again",
        "what did you say",
        "[pardon|sorry|what]",
        "repeat that, please.",
        "once more, please.",
    ],
    "how do you know": [
        "how do you know[ that| this|]",
        "why[ do you say that| do you think so| is that|]",
        "what makes you [say|think] [that|so]",
        "how can you tell",
        "who told you that",
    ],
    "no it is": [
        "no, it is {is}.",
        "[no, |but ]I think it is {is}.",
        "[wrong|not true][, |: ]it is {is}.",
        "[but |]isn't it {is}",
        "[but |]it looks {is}.",
        "I say it is {is}.",
        "no, [you are wrong|that is wrong], it is {is}.",
        "[I believe|I am sure|everybody says] it is {is}.",
        "but my friend says it is {is}.",
    ],
    # ---- copying: {word} is any word ----
    "say": [
        "say {word}",
        "say {word}.",
        "repeat {word}.",
        "[please |now |can you ][say|repeat] {word}[ please|]",
        "[say|repeat] the word {word}.",
        "[say|repeat] after me: {word}",
        "[write|read] the word {word}.",
        "the word is {word}. [say it|repeat it].",
    ],
    # ---- talk ----
    "hello": [
        "[hi|hello|hey|good morning|good afternoon|good evening|good day|greetings|hallo|morning|hiya|heya].",
        "[hi|hello|hey|hi|hello|hey|good morning|good afternoon|good evening|good day|greetings|morning|hiya]"
        "[ there| you| again| all| everyone| friend| my friend| machine| bot| little one|, friend]"
        "[||, nice to meet you|, it is me|, are you there| :)].",
        "[hi|hello|hey], [nice to meet you|good to see you|how nice to see you|is anyone there"
        "|I am new here|I am back].",
        "[hi|hello|hey] [hi|hello|hey].",
    ],
    "thanks": [
        "[thanks|thank you|many thanks|thanks a lot|thank you very much|thanks so much|thank you so much|thx|ty].",
        "[thx|ty|thanks|thank you|thanks a bunch|cheers|thank u|tysm|ta]"
        "[| again| friend| my friend| bot| a lot| a million| so much| for that| for the help| for everything| :)].",
        "[thanks|thank you|thank you very much][, that is all|, that helps|, that was it|, good answer"
        "| for your help| for your time| for the answer| for helping me].",
        "[great|perfect|ok|okay|good|nice|wow|alright|lovely|super|awesome][,|] [thanks|thank you|thx|many thanks].",
        "that [was|is] [helpful|very helpful|kind|kind of you|really helpful|a great help|useful].",
        "[you are|you were|you have been] [helpful|very helpful|a great help|so kind|kind], [thanks|thank you].",
        "thank you, [you helped me|that was good|that is kind].",
        "[I thank you|I am grateful|I want to thank you|let me thank you].",
    ],
    "bye": [
        "[bye|goodbye|bye bye|see you|see you later|see you soon|good night|farewell][||, thanks|, and thank you].",
        "I [have to|must] [go|leave][ now|]. [bye|goodbye].",
        "[that was all|that is all for today], [bye|goodbye].",
    ],
    "how are you": [
        "how are you[ today| doing|]",
        "how [do you do|is it going|are things]",
        "[hi|hello|hey], how are you[ today|]",
        "are you [well|fine|ok|all right][ today|]",
        "I am fine, and you",
    ],
    "who are you": [
        "who are you",
        "what are you",
        "who am I [talking|speaking] [to|with]",
        "are you a [machine|program|human|real person|language model|chat program]",
        "[what is your name|do you have a name|how are you called|tell me your name]",
        "who [made|built|trained|wrote] you",
        "[tell me about yourself|introduce yourself].",
        "what [kind|sort] of [program|thing|model] are you",
        "[are you|is this|am I talking to|am I speaking with] a [bot|machine|human|person|program|chatbot"
        "|real person|human or a machine|woman]",
        "[are you|is this] [human|real|alive|a machine or a person|artificial|an AI|an artificial intelligence]",
        "[who|what] [is this|is there|is speaking|is answering|is it that I talk to|wrote this answer]",
        "who [answers|is answering|reads] [me|my questions|here]",
        "[say|tell me] [who|what] you are.",
        "[and |]you are[ who| what|, sorry]",
        "what [should|can|do] I call you",
        "your name",
    ],
    "what can you do": [
        "what can you do[ for me|]",
        "what [can|could|may|should] I ask[ you|]",
        "what do you know",
        "how [can|could] you help me",
        "[how does this work|what is this for]",
        "[can you help me|I need help|help|help me].",
        "what [are you good at|are your skills|questions can you answer]",
        "which questions [can|do] you answer",
        "what [shall|should] I [do|say]",
    ],
    "praise": [
        "[well done|good job|good work|nice work|very good|excellent|amazing|wonderful|great|fantastic|clever|bravo].",
        "[you are|that was] [right|good|great|clever|very good|smart|amazing].",
        "[I like|I love] [that|you|your answers|this].",
        "[wow|cool|nice|super].",
    ],
    "beyond": [
        "what is the capital of <land>",
        "[who is the|who was the first] [president|king|leader] of <land>",
        "how many [people|inhabitants|lakes|towns] are there in <land>",
        "[where is|how far is it to|how big is] <land>",
        "what language [is spoken|do they speak] in <land>",
        "what [time|day|month|year] is it[ now| today|]",
        "what is the [time|date|temperature][ now| today|]",
        "[how is|what is|what will be] the weather [today|tomorrow|like|like tomorrow|next week|in <land>]",
        "will it [be warm|be cold|be sunny|be windy|get cold] [today|tomorrow|next week]",
        "what is <few> [plus|minus|times|and|divided by] <few>",
        "<few> [+|-|*|plus|times] <few>",
        "how much is <few> [plus|minus|times] <few>",
        "[what is|calculate] the [square root|double|half] of <few>",
        "who [wrote|invented|discovered|painted|composed|won] [<work>|it|this]",
        "when [was|did they find|did they invent|did they build] <work>",
        "what is the meaning of [life|this|the word <work>]",
        "[tell me|do you know] a [joke|story|poem|secret|fairy tale|riddle].",
        "[sing|write|read] me a [song|poem|story].",
        "[translate [that|this|it] into|say [that|good morning] in] [French|Spanish|German|Latin|Chinese].",
        "[what is|tell me] your [favourite|best] [colour|food|film|song|animal|number]",
        "do you [like|love|hate|know|remember] [me|music|school|football|my mother|work]",
        "[is it|is this <picture>] [pretty|beautiful|any good|ugly|famous|expensive]",
        "what do you think [of|about] [it|this <picture>]",
        "[do you like|do you love] [it|the <picture>]",
        "[are you|am I] [happy|sad|hungry|tired|old|in love|angry]",
        "how old [are you|am I|is my mother|is the world]",
        "where do [you|I|my friends] live",
        "what is my [name|age|job|address]",
        "who [am I|is my friend|is my father|took this <picture>|drew this <picture>|made this <picture>]",
        "when was [this|the] <picture> [painted|sold], and by whom",
        "how much [does it cost|is this <picture>|did you pay]",
        "why is [the grass green|life hard|it so late|everything so expensive]",
        "[what|who] is <work>",
        "what happened [yesterday|before|in the war|last year|to him]",
        "what will happen [next|tomorrow|later|in a year]",
        "what does it [smell|sound|feel|taste] like",
        "can you [cook|dance|drive|swim|play football|call my mother|open my mail]",
        "[what should I|what shall we] [eat|buy|do tomorrow|cook tonight]",
        "what is the [news|score|price of gold|speed of light|tallest building|longest river|deepest lake]",
        "how do [I|you] [make|bake|repair|sell] {a}",
        "how much does {a} cost",
        "what does {a} [eat|look like|cost|do]",
        "what do {many} [eat|do|like|cost]",
        "why do [people like|I need] {many}",
        "where can I buy {a}",
        "how [heavy|old|fast|expensive] is {a}",
        "what is {a}",
        "who invented {a}",
        "do {many} [sleep|think|talk]",
        "I have {a} at home. [what is its name|how old is it|is it happy]",
    ],
    "beyond the thing": [
        "why is {the} {colour}",
        "why is {the} [there|so <big>|so <small>|alone|in the <picture>]",
        "who [owns|made|built|drew|bought|painted] {the}",
        "how [old|heavy|expensive|fast|warm] is {the}",
        "how much does {the} [cost|weigh]",
        "what is the name of {the}",
        "what is {the} [called|thinking|made of|worth]",
        "is {the} [happy|sad|expensive|new|old|hungry|dangerous|tired]",
        "does {the} [have a name|like music|feel cold|make a noise|smell good]",
        "who [lives|is|sits] in {the}",
        "where does {the} come from",
        "where will {the} [go|be tomorrow]",
        "when [did|will] {the} [come|leave|arrive]",
        "what does {the} [eat|weigh|sound like|smell like|want|do at night]",
        "what [colour|size] will {the} [be|have] [tomorrow|next year]",
        "do you like {the}",
    ],
}

CONTRACTIONS = [
    (re.compile(rf"\b{long}(?= [\w{{])(?! it\b)"), short)
    for long, short in (
        ("what is", "what's"),
        ("where is", "where's"),
        ("who is", "who's"),
        ("there is", "there's"),
        ("that is", "that's"),
        ("(?:(?<=^)|(?<=, )|(?<=if )|(?<=think ))it is", "it's"),
        ("are not", "aren't"),
        ("do not", "don't"),
        ("can not", "can't"),
        ("let us", "let's"),
        ("I am", "I'm"),
        ("I would", "I'd"),
    )
]
AMERICAN = (("colour", "color"), ("centre", "center"))
PLAIN_FRAMES = {frame for frames in FRAMES.values() for frame in frames if "[" not in frame and "<" not in frame}
SHARE_HELD_OUT = 16  # one wording in this many is not for training


@lru_cache(maxsize=50_000)
def parse(text: str) -> tuple:
    """A frame -> its parts in order: strings, and choices, which are lists of such tuples."""
    text = re.sub("<(.+?)>", lambda part: f"[{PARTS[part[1]]}]", text)
    if "<" in text:
        return parse(text)
    open_choices: list[list[list]] = [[[]]]  # from the outermost to the innermost; each is a list of alternatives
    for token in re.findall(r"[\[|\]]|[^\[|\]]+", text):
        if token == "[":
            open_choices.append([[]])
        elif token == "|":
            open_choices[-1].append([])
        elif token == "]":
            choice = [tuple(alternative) for alternative in open_choices.pop()]
            open_choices[-1][-1].append(choice)
        else:
            open_choices[-1][-1].append(token)
    [choices] = open_choices
    return tuple(choices[0]) if len(choices) == 1 else ([tuple(alternative) for alternative in choices],)


def draw(parts: tuple, choose) -> str:
    """The text of a parsed frame. ``choose`` takes one of a list: ``rng.choice``, or ``first``."""
    return "".join(part if isinstance(part, str) else draw(choose(part), choose) for part in parts)


def first(choices: list):
    return choices[0]


def fill(wording: str, slots: dict[str, str], choose) -> str:
    """Replace each {slot} by its value, which may be a frame itself."""
    return re.sub(r"\{(\w+)\}", lambda slot: draw(parse(slots[slot[1]]), choose), wording)


def normal(text: str) -> str:
    """Lower-case words without punctuation: what two wordings must share to be the same."""
    return " ".join(re.sub(r"[^\w{}' ]", " ", text.lower()).split())


def is_held_out(wording: str) -> bool:
    """Whether a wording (its slots unfilled) is kept for ``heldout_words.json``.

    A frame without choices never is: its words might be nowhere else in the training.
    """
    return wording not in PLAIN_FRAMES and zlib.crc32(normal(wording).encode()) % SHARE_HELD_OUT == 0


def compose(form: str, rng: random.Random, held_out: bool = False) -> str:
    """A wording of a form of question, with its slots: of the training's or, if ``held_out``, none of them."""
    while True:
        wording = draw(parse(rng.choice(FRAMES[form])), rng.choice)
        if rng.random() < 0.12:
            wording = f"{draw(parse('<opener>'), rng.choice)} {wording}"
        if rng.random() < 0.06 and wording[-1] not in ".!?":
            wording += draw(parse("<closer>"), rng.choice)
        if is_held_out(wording) == held_out:
            return wording


def typed(wording: str, slots: dict[str, str], rng: random.Random) -> str:
    """A wording as a person types it: contractions, spelling, slips, capitals and punctuation vary."""
    if rng.random() < 0.4:
        apostrophe = "" if rng.random() < 0.2 else "'"
        for pattern, short in CONTRACTIONS:
            wording = pattern.sub(short.replace("'", apostrophe), wording)
    if rng.random() < 0.05:
        wording = slip(wording, rng)
    if rng.random() < 0.02:
        wording = re.sub(r"\b(you|are|please)\b", lambda word: {"you": "u", "are": "r"}.get(word[0], "pls"), wording)
    if rng.random() < 0.04:
        slots = {slot: value.removeprefix("the ") for slot, value in slots.items()}  # "where is car"
    text = re.sub(r"\b([Aa]) (?=(?:image|object|item|orange)\b)", r"\1n ", fill(wording, slots, rng.choice))
    if rng.random() < 0.45:
        for british, american in AMERICAN:
            text = text.replace(british, american)
    if text[-1] not in ".!?":
        text += "?"
    style = rng.random()
    if style < 0.3:
        text = text.lower()
    elif style < 0.35:
        text = text.upper()
    else:
        text = re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), text)
    if rng.random() < 0.25:
        text = text.rstrip(".?")
    elif rng.random() < 0.03:
        text += text[-1]
    return text


def slip(wording: str, rng: random.Random) -> str:
    """Mistype a word outside the slots: two letters change places, one is double or, in longer words, missing."""
    words = list(re.finditer(r"(?<![{\w'])[a-z]{4,}(?![}\w'])", wording))
    if not words:
        return wording
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    before, one, other, after = wording[:at], wording[at], wording[at + 1], wording[at + 2 :]
    slips = (other + one, one + one + other, one)[: 3 if len(word[0]) > 4 else 2]
    return before + rng.choice(slips) + after


def ask(form: str, slots: dict[str, str], rng: random.Random, held_out: bool = False) -> str:
    """A question as a person would type it."""
    return typed(compose(form, rng, held_out), slots, rng)


def ask_plainly(form: str, slots: dict[str, str], rng: random.Random) -> str:
    """A question in one of the old wordings."""
    text = fill(rng.choice(CLASSIC[form]), slots, first)
    return text[0].upper() + text[1:]
