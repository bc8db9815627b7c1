"""What stands around an option's letter, in English and Chinese: how an answer affirms, denies or doubts it.

`*_BEFORE` patterns end where the letter begins, `*_AFTER` patterns are matched where it ends. The text is that of
`choices.plain`: full-width marks are usual ones.
"""

import re

LEADS = re.compile(
    r"\s*$|\s*[吧呢啊呀]|\s*[).:、,;!。：](?!\s*[A-J]\b)|\s*\n|\s+[-–—]|选?项|\s*[,]?\s*(?:because|since|因为|是因为)"
    r"|\s+(?!(?:is|are|was|and|or|has|have|had|lies|can|must|may|does|do|cannot|to|in|on|of|at|divides|moves|will"
    r"|would"
    r"|completes|then|equals?|means|stands|represents|gives|shows|be|being|denotes|intersects?|goes|comes|wins"
    r"|got|say|think"
    r"|chose|choose|see|don't|am|isn't|doesn't)\b)\S"
)

# English, and what both languages share

FILL = (
    r"(?:(?:therefore|thus|then|hence|definitely|clearly|obviously|indeed|simply|just|probably|likely|most|certainly"
    r"|surely|still|really|also|that|the|of|option|choice|letter|answer|number|statement|figure|image|picture|it|it's"
    r"|is|correct|right|best|final|one|figure|选项|图形?|图像|图片)\b|[:\s,\"'“(]|选项|图形?)*"
)
IS = (
    r"(?:(?:\s+|\b)(?:is|was|are|be|becomes|would be|must be|should be|will be|has to be|ought to be|can only be"
    r"|turns out to be|seems to be|appears to be|comes out (?:as|to be)|remains|stays)\b|'s\b|\s*(?:=>|->|[:=→⇒]"
    r"|[-–—]))"
)
ANSWER_BEFORE = re.compile(
    rf"(?:\b(?:answers?|ans|solution|(?:choice|option|selection|pick|guess|verdict|decision"
    rf"|conclusion)(?=\s+(?:is|would|must)\b|:)|(?:correct|right|best|true|proper|valid|final|closest|appropriate"
    rf"|suitable|only)"
    rf"(?: possible| remaining| matching)?"
    rf"(?: (?:answer|option|choice|one|response|pick|letter|alternative|figure|picture|match|statement))?)\b"
    rf"[\"')\s]*(?:(?:to|for|of|in) (?:this|the|that|our|your)(?: [a-z]+)? ?[a-z]*)?\s*(?:here|then|therefore|thus)?"
    rf"{IS}{FILL}|\banswer[,)]?\s+(?:option|choice|letter)?\s*|\bans\.\s*|^\s*A:\s*|\n\s*A:\s*)$",
    re.IGNORECASE,
)
CHOSEN_BEFORE = re.compile(
    rf"(?:\b(?:choose|chose|choosing|select|selected|selecting|pick|picked|picking|go(?:ing)? (?:with|for)"
    rf"|went (?:with|for)|opt(?:ed|ing)? for|settle (?:on|for)|vote for|say|guess|bet on|conclude|stick with"
    rf"|lean towards?"
    rf"|mark|circle|tick)\b{FILL})$",
    re.IGNORECASE,
)
ANSWER_AFTER = re.compile(
    r"\s*[),]?\s*(?:option|选项)?\s*(?:is|are|was|must be|should be|would be|has to be|will be|,)\s*"
    r"(?:therefore |thus |clearly |definitely |obviously |indeed |hence |then |also )?"
    r"(?:(?:the|my|our|your)\s+(?:only\s+|most\s+|single\s+|final\s+)?"
    r"(?:correct|right|best|better|proper|answer|final|one|option that|choice|solution|appropriate|suitable|accurate)\b"
    r"|what (?:we|you|is))|[^.;\n]{0,80}\b(?:therefore|thus|hence|so) (?:is |it is )?the (?:correct"
    r"|right) (?:answer|option|choice)\b|\s*[)]?\s*(?:选项|项)?(?:就是|才是|是|为)(?:本题的?|此题的?|这道题的?"
    r"|唯一)?(?:正确)?(?:的)?答案",
    re.IGNORECASE,
)
ANSWER_ZH = re.compile(
    r"(?:(?:答案|正解|正确(?:的)?(?:答案|选项|结论|说法|判断|叙述|一项|项|图形?)?|符合(?:题意|条件"
    r"|要求)的(?:选项)?)\s*"
    r"(?:应该|应当|应|就|只能|必然|显然|当然|一定|可能)?\s*(?:选择|选|是|为|:|有|=|,)+\s*(?:选项|图形?|[:\s(\"“])*"
    r"|答案[】\])》」]?\s*[(“\"]?|(?:答|解答)\s*[:是为]\s*|填(?:入|写|的是|上)?(?:选项|图形?)?\s*[(“]?"
    r"|(?<![任挑])选(?:择)?(?:答案|的是|的|定|出|了|为|是|[:\s(\"“])*(?:选项|图形?)?[\s:(\"“]*)$"
)
RIGHT_AFTER = re.compile(
    r"\s*[),]?\s*(?:option|choice|选项|项|图)?\s*,?\s*(?:"
    r"(?:(?:is|are|was|looks|seems|must be|should be|would be|has to be|appears to be|will be)\s+)"
    r"(?:therefore |thus |clearly |definitely |obviously |indeed |hence |also |the only |the one |only )?"
    r"(?:correct|right|true|valid|it\b|best|that (?:fits|matches|works|is)|(?:which|that) )"
    r"|(?:fits|matches|works|remains|satisfies|holds|is left|wins|(?:comes|is) (?:the )?closest)\b|[✓✔✅]"
    r"|(?:显然|一定|才|就|最|更|比较|较|均|都|也|是|为)*(?:正确|对的|对(?=[,.。;!]|$)|符合|满足|成立|合适|合理"
    r"|接近|相符|吻合|准确|恰当))",
    re.IGNORECASE,
)
SENTENCE_OVER = re.compile(
    r"\s*(?:[.,;:!)。、\n]|$|\(|because|since|as\b|项|选项|[-–—]|吧|了|，|因为)"
)
THEREFORE = re.compile(
    r"(?:\b(?:so|thus|hence|therefore|then|consequently|accordingly|but|no|yes|ok|okay|actually|wait|rather"
    r"|leaves|leaving"
    r"|remaining|only|definitely|surely|certainly|probably|clearly|obviously|likely|absolutely|elimination|finally|overall|conclusion|perhaps|maybe"
    r"|possibly|i think|i believe)\b[,:\s]*(?:(?:it|that|this|we have|we get|it's|that's)(?: is|'s| must be"
    r"| has to be| should be"
    r"| can only be| would be| leaves)?)?"
    r"|\b(?:it|that|this)(?:'s| is| must be| has to be| should be| would be| can only be| will be)"
    r"|的是|应该?是|所以是|因此是|因而是|就是|才是|只能是|必然是|一定是|而是|只有|应为|故为|即为|只剩下?"
    r"|剩下的?是?|综上,?|所以|因此|因而|故|即|得)"
    r"\s*(?:(?:clearly|definitely|obviously|probably|the|option|choice|answer|letter|just|simply)\b|选项|答案"
    r"|[:\s,\"“(])*$",
    re.IGNORECASE,
)
THE_ONE_IS = re.compile(
    r"\b(?:only|one|best|largest|smallest|longest|shortest|highest|lowest|most|least|correct|missing|odd|next"
    r"|different)\b"
    r"[^.;,:\n]{0,50}\b(?:is|must be|should be|would be)\s+(?:option |choice |the )?[(\"“]*$|(?:最"
    r"|唯一)[^,.;。\n]{0,20}[是为](?:选项)?[(“]*$",
    re.IGNORECASE,
)
IS_LAST = re.compile(
    r"(?:\b(?:is|be|are|becomes|like|'s|giving|gives|yielding|yields|obtain|get)\s+(?:the |in |at "
    r"|on )?(?:picture |figure |image |panel |shape )?"
    r"|(?<![点心角线边弧径段])(?:是|像|为)\s*)[(\"“]*$",
    re.IGNORECASE,
)
ONLY = re.compile(r"(?:\bonly|只有|仅有?|唯有)\s*(?:option |choice |选项)?[(\"“]*$", re.IGNORECASE)
GEOMETRY = re.compile(
    r"\b(?:points?|cent(?:re|er)|vert(?:ex|ices)|midpoint|angles?|sides?|radius|origin|circle|lines?|segments?"
    r"|foot|sets?|events?"
    r"|vitamin|hepatitis|intersection|intersects?|planes?|student|letters? (?:before|after)|blood|grade|size|type"
    r"|group|team)\b"
    r"|[点心角线边弧径段圆]",
    re.IGNORECASE,
)
EXCEPT = re.compile(
    r"(?:\b(?:anything|everything|all|any|every \w+|any \w+|all \w+|all of \w+(?: \w+)?)\s+(?:but|except)"
    r"|\bexcept(?: for)?|(?<![排去剔])除了?|除开)"
    r"\s*(?:option|choice|选项)?[\s(\"“]*$",
    re.IGNORECASE,
)
WHICH_IS = re.compile(
    r"(?:\b(?:is|matches|match|equals|corresponds? (?:to|with)|corresponding to|gives?|agrees with|leads? to"
    r"|leaves|yields"
    r"|points? to|namely|i\.e\.,?|matching|that is,?|as in|fits|supports?|indicates?|means|consistent with|listed as"
    r"|shown in|in line with|labell?ed)\s+(?:by |in |as )?(?:the )?(?:correct )?(?:option|choice|answer|letter)"
    r"|=>|[→⇒]"
    r"|(?:对应|即|得|得到|就是|也就是|符合|属于|与|跟|和|同|是|见|匹配)(?:的是|的)?选项)\s*[:(\"“]*$",
    re.IGNORECASE,
)
NAMED_OPTION = re.compile(
    r"(?:\b(?:option|choice)|\A(?:picture|figure|image|panel|shape|diagram|graph)|选项|\A图形?)\s*[:(\"“]*$",
    re.IGNORECASE,
)
ARTICLE_AFTER_MARK = re.compile(
    r"(?:\boption|\bchoice|\bletter|选项|选|答案[是为:])\s*$", re.IGNORECASE
)
CORRECTION = re.compile(
    r"\b(?:wait|actually|on second thought|scratch that|let me correct|correction|i made a mistake|no wait|oops)\b"
    r"|(?:不对(?=[,，.。!])|等等|更正|纠正一下|哦不|重新(?:考虑|检查|计算|审题))",
    re.IGNORECASE,
)

# Denied and doubted

DENIED_BEFORE = re.compile(
    r"(?:(?:\bnot|n't|\bnever|\bneither|\bnor|\bcannot|\brather than|\binstead of|\beliminat(?:e|es|ed|ing)"
    r"|\brul(?:e|es|ed|ing) out|\bexclud(?:e|es|ed|ing)|\bdiscard(?:s|ed|ing)?|\breject(?:s|ed|ing)?"
    r"|\bcross(?:es|ed|ing)? (?:out|off)|\bstrik(?:e|es|ing) (?:out|off)|\bwithout|\bother than|\bunlike"
    r"|\bdismiss(?:es|ed|ing)?"
    r"|\b(?:wrong|incorrect|worst) (?:answer|option|choice)s? (?:is|are|would be))"
    r"(?:\s+(?:be|is|the|to|pick|choose|select|go with|say|option|choice|answer|letter|options|choices|answers"
    r"|correct|both"
    r"|necessarily|really|actually|simply|just|either))*[\s:(\"“]*"
    r"|(?:[不没未非勿别莫误错](?:有|应该|应当|能|要|会|可能|可以|可|该|应|必|得)*(?:是|选择|选|为|填)|而非|并非"
    r"|非|排除(?:掉|了)?|去掉|剔除"
    r"|否定(?:了)?|舍去|去除|淘汰|不等于|不属于|不符合|误认为是?|误以为是?)(?:的是|了)?\s*(?:选项|答案"
    r"|项)*[\s:(\"“]*)$",
    re.IGNORECASE,
)
DENIED_SENTENCE = re.compile(
    r"(?:n't|\bnot|\bnever)\s+(?:think|believe|say|agree|look|seem|choose|pick|expect|see how)\b|\bno way\b"
    r"|\bimpossible that\b"
    r"|\bI doubt\b|不认为|不觉得|不同意|没法得出",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    r"\s*\)?\s*(?:option|choice|options|choices|选项|项)?\s*(?:"
    r"(?:(?:is|are|was|were|looks?|seems?|would be|must be|should be|has to be|can be|could be|will be|both|all"
    r"|clearly|also"
    r"|therefore|thus|obviously|definitely|to be|simply|just|already|being|has been|have been|get|gets)\s+)+"
    r"(?:wrong|incorrect|false|invalid|not\b|too\b|out\b|impossible|ruled|eliminated|excluded|rejected|discarded"
    r"|inconsistent"
    r"|irrelevant|no good|unlikely|untrue|off\b|dismissed|contradict)"
    r"|(?:is|are|was|were|do|does|did|ca|can|could|wo|would|should)(?:n't|n’t)\b|(?:cannot|can not|does not"
    r"|do not|fails?|failed"
    r"|contradicts?|violates?|misses|lacks|could not|would not|will not)\b|[✗✘❌×]|\s*[:.)-]?\s*(?:wrong"
    r"|incorrect|false)\b"
    r"|(?:[):.、]?\s*)?(?:选项|项)?(?:也|均|都|就|则|是|明显|显然|一定|肯定|可以|可|应|被|应该|应当|直接|全|两项"
    r"|三项|两个|三个|两|三|选项)*"
    r"(?:错误|错|不对|不正确|不符|不成立|不满足|不合|不可能|不是|不行|不选|不能|不应|有误|排除|否定|矛盾|偏大"
    r"|偏小|太大|太小|过大|过小|舍去"
    r"|不等|不相等|不准确|不恰当|不合适|与题意不))",
    re.IGNORECASE,
)
DOUBT_BEFORE = re.compile(
    r"(?:\b(?:perhaps|maybe|possibly|if|suppose|assume|assuming|thought|think(?:ing)? at first|initially|at first"
    r"|first guess|might be|may be|could be"
    r"|whether|tempt(?:ed|ing)|someone|some people|some students|student|why|unless|looks like|hardly|before"
    r"|is it|people often"
    r"|many|trap|distractor|friend)\b|如果|若|假如|假设|有人|有的(?:同学|人)|以为|看似|可能(?:会|是|选)|容易|起初"
    r"|一开始|最初|同学|为什么|是否|会不会"
    r"|也许|或许|干扰)[^.。;,，!?！？\n]*$",
    re.IGNORECASE,
)
DOUBT_AFTER = re.compile(
    r"\s*[)]?\s*(?:选项|项)?\s*(?:\?|吗|呢|还是|looks (?:good|tempting|plausible|likely)|seems (?:good|tempting"
    r"|plausible|likely))"
)


CLAUSE_END = re.compile(
    r"[.;!?。\n,](?!\d)|\b(?:because|since|as|while|whereas|but|and|so)\b|因为|所以|而|[A-J]\b"
)
DENIED_IN = re.compile(
    r"\b(?:is|are|was|looks|seems|would be) (?:clearly |also |simply |just |definitely )?(?:wrong|incorrect|false"
    r"|invalid|too|not|out)\b"
    r"|\b(?:is|does|do|has|would|can|could)(?:n't| not)\b|\bcannot\b|\bno\b|\bfails?\b|\bcontradicts?\b"
    r"|不符|不一致|不相符|不吻合|不匹配|不满足|不成立|不正确|错误|不对|有误|矛盾|排除|不同",
    re.IGNORECASE,
)

_LINE_BEGINS = re.compile(
    r"(?:^|\n)[ \t]*(?:[-*•+]|\d+[.)]|\||#+)?[ \t]*(?:option |选项)?[(\[【]?$", re.IGNORECASE
)
_LABELLED = re.compile(r"[)\]】]?[ \t]*[.):、|][^\n]*?([✓✔✅☑✗✘❌✖])(?![^\n]*[✓✔✅☑✗✘❌✖])")


def mark_in_line(before: str, after: str) -> bool | None:
    """Whether a line that begins with an option's letter has a tick, or a cross; None if it has neither, or several.

    >>> mark_in_line("- ", ". a bathroom ✅ a tub"), mark_in_line("(", ") a kitchen ❌"), mark_in_line("", ". a cat")
    (True, False, None)
    """
    match = _LABELLED.match(after) if _LINE_BEGINS.search(before) else None
    if match is None:
        return None
    return match.group(1) in "✓✔✅☑"
