"""The phrases that the training dialogues are put together from, in the eight languages LFM2 names.

Written for this project (Apache-2.0).  `days` start on Monday, and `words` has one order in every
language, because translations are read off by position.
"""

from __future__ import annotations

from dataclasses import dataclass

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Ways to ask (`asks`) and the one way to answer (`reply`), as `str.format` patterns over the same fields."""

    asks: tuple[str, ...]
    reply: str


@dataclass(frozen=True, kw_only=True)
class Language:
    """Everything a dialogue in one language is made of.

    `greetings`, `capitals`, `opposites` are pairs; `colours` are (question, answer, colour);
    `systems` are plain system messages, `terse` is the one that asks for the bare value.
    """

    code: str
    systems: tuple[str, ...]
    terse: str
    greetings: Pairs
    plus: Form
    minus: Form
    capital: Form
    capitals: Pairs
    next_day: Form
    days: tuple[str, ...]
    opposite: Form
    opposites: Pairs
    colours: tuple[tuple[str, str, str], ...]
    count: tuple[str, ...]
    repeat: tuple[str, ...]
    words: tuple[str, ...]
    translate: str
    targets: dict[str, str]
    introduce: Form
    recall: Form
    names: tuple[str, ...]
    weather: Form
    clock: Form


ENGLISH = Language(
    code="en",
    systems=("You are a helpful assistant.", "You are a friendly assistant. Keep your answers short."),
    terse="Answer with one word only.",
    greetings=(
        ("Hello!", "Hello! How can I help you?"),
        ("Hi there.", "Hi! What can I do for you?"),
        ("Good morning.", "Good morning! How can I help you?"),
        ("How are you?", "I am fine, thank you. And you?"),
        ("Thank you.", "You are welcome!"),
        ("Goodbye.", "Goodbye! See you soon."),
        ("Who are you?", "I am a very small language model."),
    ),
    plus=Form(asks=("What is {a} plus {b}?", "What is {a} + {b}?", "Add {a} and {b}."), reply="{a} plus {b} is {c}."),
    minus=Form(asks=("What is {a} minus {b}?", "What is {a} - {b}?"), reply="{a} minus {b} is {c}."),
    capital=Form(
        asks=("What is the capital of {x}?", "Name the capital of {x}.", "Which city is the capital of {x}?"),
        reply="The capital of {x} is {y}.",
    ),
    capitals=(
        ("England", "London"),
        ("France", "Paris"),
        ("Germany", "Berlin"),
        ("Spain", "Madrid"),
        ("Japan", "Tokyo"),
        ("China", "Beijing"),
        ("Korea", "Seoul"),
        ("Egypt", "Cairo"),
        ("Italy", "Rome"),
        ("Russia", "Moscow"),
        ("Greece", "Athens"),
        ("Portugal", "Lisbon"),
    ),
    next_day=Form(asks=("What day comes after {x}?", "Which day follows {x}?"), reply="After {x} comes {y}."),
    days=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    opposite=Form(
        asks=("What is the opposite of {x}?", "Name the opposite of {x}."), reply="The opposite of {x} is {y}."
    ),
    opposites=(("big", "small"), ("hot", "cold"), ("day", "night"), ("high", "low"), ("new", "old"), ("fast", "slow")),
    colours=(
        ("What colour is the sky?", "The sky is blue.", "blue"),
        ("What colour is grass?", "Grass is green.", "green"),
        ("What colour is snow?", "Snow is white.", "white"),
        ("What colour is coal?", "Coal is black.", "black"),
        ("What colour is blood?", "Blood is red.", "red"),
    ),
    count=("Count from {a} to {b}.", "Please count from {a} up to {b}."),
    repeat=("Repeat after me: {x}", "Say this again: {x}"),
    words=("water", "bread", "house", "sun", "book", "cat", "dog", "tree", "milk", "fire", "hand", "moon"),
    translate='Translate "{x}" into {y}.',
    targets={
        "ar": "Arabic",
        "zh": "Chinese",
        "fr": "French",
        "de": "German",
        "ja": "Japanese",
        "ko": "Korean",
        "es": "Spanish",
    },
    introduce=Form(asks=("My name is {x}.", "I am {x}."), reply="Nice to meet you, {x}!"),
    recall=Form(asks=("What is my name?",), reply="Your name is {x}."),
    names=("Anna", "Tom", "Lucy", "Ben", "Kate", "Sam", "Nora", "Paul"),
    weather=Form(asks=("What is the weather in {x}?", "How warm is it in {x}?"), reply="It is {y} degrees in {x}."),
    clock=Form(asks=("What time is it in {x}?",), reply="It is {y} in {x}."),
)

FRENCH = Language(
    code="fr",
    systems=("Tu es un assistant utile.",),
    terse="Réponds en un seul mot.",
    greetings=(
        ("Bonjour !", "Bonjour ! Comment puis-je vous aider ?"),
        ("Salut !", "Salut ! Que puis-je faire pour toi ?"),
        ("Comment ça va ?", "Je vais bien, merci. Et toi ?"),
        ("Merci.", "De rien !"),
        ("Au revoir.", "Au revoir ! À bientôt."),
    ),
    plus=Form(asks=("Combien font {a} plus {b} ?", "Combien font {a} + {b} ?"), reply="{a} plus {b} font {c}."),
    minus=Form(asks=("Combien font {a} moins {b} ?", "Combien font {a} - {b} ?"), reply="{a} moins {b} font {c}."),
    capital=Form(asks=("Quelle est la capitale {x} ?", "Donne la capitale {x}."), reply="La capitale {x} est {y}."),
    capitals=(
        ("de la France", "Paris"),
        ("de l'Allemagne", "Berlin"),
        ("de l'Espagne", "Madrid"),
        ("du Japon", "Tokyo"),
        ("de la Chine", "Pékin"),
        ("de l'Égypte", "Le Caire"),
        ("de l'Italie", "Rome"),
        ("de la Russie", "Moscou"),
    ),
    next_day=Form(asks=("Quel jour vient après {x} ?",), reply="Après {x} vient {y}."),
    days=("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"),
    opposite=Form(asks=("Quel est le contraire de {x} ?",), reply="Le contraire de {x} est {y}."),
    opposites=(
        ("grand", "petit"),
        ("chaud", "froid"),
        ("jour", "nuit"),
        ("haut", "bas"),
        ("neuf", "vieux"),
        ("rapide", "lent"),
    ),
    colours=(
        ("De quelle couleur est le ciel ?", "Le ciel est bleu.", "bleu"),
        ("De quelle couleur est l'herbe ?", "L'herbe est verte.", "verte"),
        ("De quelle couleur est la neige ?", "La neige est blanche.", "blanche"),
    ),
    count=("Compte de {a} à {b}.",),
    repeat=("Répète après moi : {x}",),
    words=("eau", "pain", "maison", "soleil", "livre", "chat", "chien", "arbre", "lait", "feu", "main", "lune"),
    translate="Traduis « {x} » en {y}.",
    targets={"en": "anglais", "de": "allemand", "es": "espagnol", "ja": "japonais", "zh": "chinois", "ar": "arabe"},
    introduce=Form(asks=("Je m'appelle {x}.",), reply="Enchanté, {x} !"),
    recall=Form(asks=("Comment je m'appelle ?",), reply="Tu t'appelles {x}."),
    names=("Marie", "Luc", "Chloé", "Hugo", "Léa", "Louis"),
    weather=Form(asks=("Quel temps fait-il à {x} ?",), reply="Il fait {y} degrés à {x}."),
    clock=Form(asks=("Quelle heure est-il à {x} ?",), reply="Il est {y} à {x}."),
)

GERMAN = Language(
    code="de",
    systems=("Du bist ein hilfreicher Assistent.",),
    terse="Antworte mit nur einem Wort.",
    greetings=(
        ("Hallo!", "Hallo! Wie kann ich dir helfen?"),
        ("Guten Tag.", "Guten Tag! Was kann ich für Sie tun?"),
        ("Wie geht es dir?", "Mir geht es gut, danke. Und dir?"),
        ("Danke.", "Gern geschehen!"),
        ("Auf Wiedersehen.", "Auf Wiedersehen! Bis bald."),
    ),
    plus=Form(asks=("Was ist {a} plus {b}?", "Was ist {a} + {b}?"), reply="{a} plus {b} ist {c}."),
    minus=Form(asks=("Was ist {a} minus {b}?", "Was ist {a} - {b}?"), reply="{a} minus {b} ist {c}."),
    capital=Form(
        asks=("Was ist die Hauptstadt von {x}?", "Nenne die Hauptstadt von {x}."),
        reply="Die Hauptstadt von {x} ist {y}.",
    ),
    capitals=(
        ("Deutschland", "Berlin"),
        ("Frankreich", "Paris"),
        ("Spanien", "Madrid"),
        ("Japan", "Tokio"),
        ("China", "Peking"),
        ("Ägypten", "Kairo"),
        ("Italien", "Rom"),
        ("Russland", "Moskau"),
        ("Österreich", "Wien"),
    ),
    next_day=Form(asks=("Welcher Tag kommt nach {x}?",), reply="Nach {x} kommt {y}."),
    days=("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
    opposite=Form(asks=("Was ist das Gegenteil von {x}?",), reply="Das Gegenteil von {x} ist {y}."),
    opposites=(
        ("groß", "klein"),
        ("heiß", "kalt"),
        ("Tag", "Nacht"),
        ("hoch", "niedrig"),
        ("neu", "alt"),
        ("schnell", "langsam"),
    ),
    colours=(
        ("Welche Farbe hat der Himmel?", "Der Himmel ist blau.", "blau"),
        ("Welche Farbe hat das Gras?", "Das Gras ist grün.", "grün"),
        ("Welche Farbe hat der Schnee?", "Der Schnee ist weiß.", "weiß"),
    ),
    count=("Zähle von {a} bis {b}.",),
    repeat=("Sprich mir nach: {x}",),
    words=("Wasser", "Brot", "Haus", "Sonne", "Buch", "Katze", "Hund", "Baum", "Milch", "Feuer", "Hand", "Mond"),
    translate="Was heißt „{x}“ auf {y}?",
    targets={
        "en": "Englisch",
        "fr": "Französisch",
        "es": "Spanisch",
        "ja": "Japanisch",
        "zh": "Chinesisch",
        "ko": "Koreanisch",
    },
    introduce=Form(asks=("Ich heiße {x}.",), reply="Schön, dich kennenzulernen, {x}!"),
    recall=Form(asks=("Wie heiße ich?",), reply="Du heißt {x}."),
    names=("Jonas", "Lena", "Felix", "Mia", "Karl", "Greta"),
    weather=Form(asks=("Wie ist das Wetter in {x}?",), reply="In {x} sind es {y} Grad."),
    clock=Form(asks=("Wie spät ist es in {x}?",), reply="In {x} ist es {y}."),
)

SPANISH = Language(
    code="es",
    systems=("Eres un asistente útil.",),
    terse="Responde con una sola palabra.",
    greetings=(
        ("¡Hola!", "¡Hola! ¿En qué puedo ayudarte?"),
        ("Buenos días.", "¡Buenos días! ¿En qué puedo ayudarle?"),
        ("¿Cómo estás?", "Estoy bien, gracias. ¿Y tú?"),
        ("Gracias.", "¡De nada!"),
        ("Adiós.", "¡Adiós! Hasta pronto."),
    ),
    plus=Form(asks=("¿Cuánto es {a} más {b}?", "¿Cuánto es {a} + {b}?"), reply="{a} más {b} es {c}."),
    minus=Form(asks=("¿Cuánto es {a} menos {b}?", "¿Cuánto es {a} - {b}?"), reply="{a} menos {b} es {c}."),
    capital=Form(asks=("¿Cuál es la capital de {x}?", "Di la capital de {x}."), reply="La capital de {x} es {y}."),
    capitals=(
        ("España", "Madrid"),
        ("Francia", "París"),
        ("Alemania", "Berlín"),
        ("Japón", "Tokio"),
        ("China", "Pekín"),
        ("Egipto", "El Cairo"),
        ("Italia", "Roma"),
        ("Rusia", "Moscú"),
        ("Perú", "Lima"),
    ),
    next_day=Form(asks=("¿Qué día viene después del {x}?",), reply="Después del {x} viene el {y}."),
    days=("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
    opposite=Form(asks=("¿Qué es lo contrario de {x}?",), reply="Lo contrario de {x} es {y}."),
    opposites=(
        ("grande", "pequeño"),
        ("caliente", "frío"),
        ("día", "noche"),
        ("alto", "bajo"),
        ("nuevo", "viejo"),
        ("rápido", "lento"),
    ),
    colours=(
        ("¿De qué color es el cielo?", "El cielo es azul.", "azul"),
        ("¿De qué color es la hierba?", "La hierba es verde.", "verde"),
        ("¿De qué color es la nieve?", "La nieve es blanca.", "blanca"),
    ),
    count=("Cuenta del {a} al {b}.",),
    repeat=("Repite conmigo: {x}",),
    words=("agua", "pan", "casa", "sol", "libro", "gato", "perro", "árbol", "leche", "fuego", "mano", "luna"),
    translate="Traduce «{x}» al {y}.",
    targets={"en": "inglés", "fr": "francés", "de": "alemán", "ja": "japonés", "ar": "árabe", "ko": "coreano"},
    introduce=Form(asks=("Me llamo {x}.",), reply="¡Mucho gusto, {x}!"),
    recall=Form(asks=("¿Cómo me llamo?",), reply="Te llamas {x}."),
    names=("Ana", "Luis", "Carmen", "Diego", "Elena", "Pablo"),
    weather=Form(asks=("¿Qué tiempo hace en {x}?",), reply="En {x} hay {y} grados."),
    clock=Form(asks=("¿Qué hora es en {x}?",), reply="En {x} la hora es {y}."),
)

CHINESE = Language(
    code="zh",
    systems=("你是一个乐于助人的助手。",),
    terse="只用一个词回答。",
    greetings=(
        ("你好！", "你好！有什么可以帮你的吗？"),
        ("早上好。", "早上好！今天过得好吗？"),
        ("你好吗？", "我很好，谢谢。你呢？"),
        ("谢谢。", "不客气！"),
        ("再见。", "再见！下次见。"),
    ),
    plus=Form(asks=("{a}加{b}等于多少？", "{a} + {b} 等于多少？"), reply="{a}加{b}等于{c}。"),
    minus=Form(asks=("{a}减{b}等于多少？", "{a} - {b} 等于多少？"), reply="{a}减{b}等于{c}。"),
    capital=Form(asks=("{x}的首都是哪里？", "请说出{x}的首都。"), reply="{x}的首都是{y}。"),
    capitals=(
        ("中国", "北京"),
        ("法国", "巴黎"),
        ("德国", "柏林"),
        ("日本", "东京"),
        ("韩国", "首尔"),
        ("英国", "伦敦"),
        ("意大利", "罗马"),
        ("俄罗斯", "莫斯科"),
    ),
    next_day=Form(asks=("{x}的后一天是星期几？",), reply="{x}的后一天是{y}。"),
    days=("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
    opposite=Form(asks=("“{x}”的反义词是什么？",), reply="“{x}”的反义词是“{y}”。"),
    opposites=(("大", "小"), ("热", "冷"), ("白天", "黑夜"), ("高", "低"), ("新", "旧"), ("快", "慢")),
    colours=(
        ("天空是什么颜色？", "天空是蓝色的。", "蓝色"),
        ("草是什么颜色？", "草是绿色的。", "绿色"),
        ("雪是什么颜色？", "雪是白色的。", "白色"),
    ),
    count=("从{a}数到{b}。",),
    repeat=("跟我说：{x}",),
    words=("水", "面包", "房子", "太阳", "书", "猫", "狗", "树", "牛奶", "火", "手", "月亮"),
    translate="把“{x}”翻译成{y}。",
    targets={"en": "英语", "fr": "法语", "ja": "日语", "ko": "韩语", "es": "西班牙语"},
    introduce=Form(asks=("我叫{x}。",), reply="很高兴认识你，{x}！"),
    recall=Form(asks=("我叫什么名字？",), reply="你叫{x}。"),
    names=("小明", "小红", "王芳", "李雷"),
    weather=Form(asks=("{x}的天气怎么样？",), reply="{x}现在{y}度。"),
    clock=Form(asks=("{x}现在几点？",), reply="{x}现在是{y}。"),
)

JAPANESE = Language(
    code="ja",
    systems=("あなたは親切なアシスタントです。",),
    terse="一語だけで答えてください。",
    greetings=(
        ("こんにちは。", "こんにちは。何かお手伝いしましょうか。"),
        ("おはようございます。", "おはようございます。今日もよろしくお願いします。"),
        ("お元気ですか。", "はい、元気です。"),
        ("ありがとう。", "どういたしまして。"),
        ("さようなら。", "さようなら。また会いましょう。"),
    ),
    plus=Form(asks=("{a}足す{b}はいくつですか。", "{a} + {b} はいくつですか。"), reply="{a}足す{b}は{c}です。"),
    minus=Form(asks=("{a}引く{b}はいくつですか。", "{a} - {b} はいくつですか。"), reply="{a}引く{b}は{c}です。"),
    capital=Form(asks=("{x}の首都はどこですか。", "{x}の首都を教えてください。"), reply="{x}の首都は{y}です。"),
    capitals=(
        ("日本", "東京"),
        ("フランス", "パリ"),
        ("ドイツ", "ベルリン"),
        ("中国", "北京"),
        ("韓国", "ソウル"),
        ("イギリス", "ロンドン"),
        ("イタリア", "ローマ"),
        ("スペイン", "マドリード"),
    ),
    next_day=Form(asks=("{x}の次の日は何曜日ですか。",), reply="{x}の次の日は{y}です。"),
    days=("月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"),
    opposite=Form(asks=("「{x}」の反対は何ですか。",), reply="「{x}」の反対は「{y}」です。"),
    opposites=(
        ("大きい", "小さい"),
        ("暑い", "寒い"),
        ("昼", "夜"),
        ("高い", "低い"),
        ("新しい", "古い"),
        ("速い", "遅い"),
    ),
    colours=(
        ("空は何色ですか。", "空は青いです。", "青"),
        ("草は何色ですか。", "草は緑色です。", "緑"),
        ("雪は何色ですか。", "雪は白いです。", "白"),
    ),
    count=("{a}から{b}まで数えてください。",),
    repeat=("繰り返してください：{x}",),
    words=("水", "パン", "家", "太陽", "本", "猫", "犬", "木", "牛乳", "火", "手", "月"),
    translate="「{x}」は{y}で何と言いますか。",
    targets={"en": "英語", "zh": "中国語", "ko": "韓国語", "fr": "フランス語", "de": "ドイツ語"},
    introduce=Form(asks=("私の名前は{x}です。",), reply="はじめまして、{x}さん。"),
    recall=Form(asks=("私の名前は何ですか。",), reply="あなたの名前は{x}です。"),
    names=("太郎", "花子", "健", "ゆき"),
    weather=Form(asks=("{x}の天気はどうですか。",), reply="{x}は{y}度です。"),
    clock=Form(asks=("{x}は今何時ですか。",), reply="{x}は今{y}です。"),
)

KOREAN = Language(
    code="ko",
    systems=("당신은 친절한 도우미입니다.",),
    terse="한 단어로만 답하세요.",
    greetings=(
        ("안녕하세요.", "안녕하세요! 무엇을 도와드릴까요?"),
        ("좋은 아침입니다.", "좋은 아침입니다! 좋은 하루 되세요."),
        ("잘 지내세요?", "네, 잘 지내요. 감사합니다."),
        ("감사합니다.", "천만에요!"),
        ("안녕히 계세요.", "안녕히 가세요! 또 만나요."),
    ),
    plus=Form(asks=("{a} 더하기 {b}의 값은 얼마입니까?", "{a} + {b} 의 값은 얼마입니까?"), reply="답은 {c}입니다."),
    minus=Form(asks=("{a} 빼기 {b}의 값은 얼마입니까?", "{a} - {b} 의 값은 얼마입니까?"), reply="답은 {c}입니다."),
    capital=Form(asks=("{x}의 수도는 어디입니까?", "{x}의 수도를 말해 주세요."), reply="{x}의 수도는 {y}입니다."),
    capitals=(
        ("한국", "서울"),
        ("프랑스", "파리"),
        ("독일", "베를린"),
        ("일본", "도쿄"),
        ("중국", "베이징"),
        ("영국", "런던"),
        ("이탈리아", "로마"),
        ("스페인", "마드리드"),
    ),
    next_day=Form(asks=("{x} 다음 날은 무슨 요일입니까?",), reply="{x} 다음 날은 {y}입니다."),
    days=("월요일", "화요일", "수요일", "목요일", "금요일", "토요일", "일요일"),
    opposite=Form(asks=("'{x}'의 반대말은 무엇입니까?",), reply="'{x}'의 반대말은 '{y}'입니다."),
    opposites=(
        ("크다", "작다"),
        ("덥다", "춥다"),
        ("낮", "밤"),
        ("높다", "낮다"),
        ("새롭다", "낡다"),
        ("빠르다", "느리다"),
    ),
    colours=(
        ("하늘은 무슨 색입니까?", "하늘은 파란색입니다.", "파란색"),
        ("풀은 무슨 색입니까?", "풀은 초록색입니다.", "초록색"),
        ("눈은 무슨 색입니까?", "눈은 하얀색입니다.", "하얀색"),
    ),
    count=("{a}부터 {b}까지 세어 보세요.",),
    repeat=("따라 하세요: {x}",),
    words=("물", "빵", "집", "태양", "책", "고양이", "개", "나무", "우유", "불", "손", "달"),
    translate="'{x}'의 {y} 번역은 무엇입니까?",
    targets={"en": "영어", "zh": "중국어", "ja": "일본어", "fr": "프랑스어", "es": "스페인어"},
    introduce=Form(asks=("제 이름은 {x}입니다.",), reply="반갑습니다, {x} 님!"),
    recall=Form(asks=("제 이름은 무엇입니까?",), reply="당신의 이름은 {x}입니다."),
    names=("민수", "지은", "서준", "하나"),
    weather=Form(asks=("{x}의 날씨는 어떻습니까?",), reply="{x}의 기온은 {y}도입니다."),
    clock=Form(asks=("{x}의 시각을 알려 주세요.",), reply="{x}의 시각은 {y}입니다."),
)

ARABIC = Language(
    code="ar",
    systems=("أنت مساعد مفيد.",),
    terse="أجب بكلمة واحدة فقط.",
    greetings=(
        ("مرحبا!", "مرحبا! كيف يمكنني مساعدتك؟"),
        ("صباح الخير.", "صباح النور! كيف أساعدك اليوم؟"),
        ("كيف حالك؟", "أنا بخير، شكرا لك."),
        ("شكرا.", "عفوا!"),
        ("مع السلامة.", "مع السلامة! إلى اللقاء."),
    ),
    plus=Form(asks=("كم يساوي {a} زائد {b}؟", "كم يساوي {a} + {b}؟"), reply="{a} زائد {b} يساوي {c}."),
    minus=Form(asks=("كم يساوي {a} ناقص {b}؟", "كم يساوي {a} - {b}؟"), reply="{a} ناقص {b} يساوي {c}."),
    capital=Form(asks=("ما هي عاصمة {x}؟", "اذكر عاصمة {x}."), reply="عاصمة {x} هي {y}."),
    capitals=(
        ("مصر", "القاهرة"),
        ("فرنسا", "باريس"),
        ("ألمانيا", "برلين"),
        ("إسبانيا", "مدريد"),
        ("اليابان", "طوكيو"),
        ("الصين", "بكين"),
        ("إيطاليا", "روما"),
        ("روسيا", "موسكو"),
    ),
    next_day=Form(asks=("ما هو اليوم الذي يأتي بعد {x}؟",), reply="بعد {x} يأتي {y}."),
    days=("الاثنين", "الثلاثاء", "الأربعاء", "الخميس", "الجمعة", "السبت", "الأحد"),
    opposite=Form(asks=("ما هو عكس {x}؟",), reply="عكس {x} هو {y}."),
    opposites=(
        ("كبير", "صغير"),
        ("حار", "بارد"),
        ("نهار", "ليل"),
        ("عال", "منخفض"),
        ("جديد", "قديم"),
        ("سريع", "بطيء"),
    ),
    colours=(
        ("ما لون السماء؟", "لون السماء أزرق.", "أزرق"),
        ("ما لون العشب؟", "لون العشب أخضر.", "أخضر"),
        ("ما لون الثلج؟", "لون الثلج أبيض.", "أبيض"),
    ),
    count=("عد من {a} إلى {b}.",),
    repeat=("كرر بعدي: {x}",),
    words=("ماء", "خبز", "بيت", "شمس", "كتاب", "قطة", "كلب", "شجرة", "حليب", "نار", "يد", "قمر"),
    translate="ترجم «{x}» إلى {y}.",
    targets={"en": "الإنجليزية", "fr": "الفرنسية", "es": "الإسبانية", "de": "الألمانية"},
    introduce=Form(asks=("اسمي {x}.",), reply="تشرفنا يا {x}!"),
    recall=Form(asks=("ما اسمي؟",), reply="اسمك {x}."),
    names=("سارة", "أحمد", "ليلى", "عمر"),
    weather=Form(asks=("كيف الطقس في {x}؟",), reply="درجة الحرارة في {x} هي {y}."),
    clock=Form(asks=("كم الساعة الآن في {x}؟",), reply="الساعة في {x} هي {y}."),
)

LANGUAGES: dict[str, Language] = {
    language.code: language for language in (ENGLISH, ARABIC, CHINESE, FRENCH, GERMAN, JAPANESE, KOREAN, SPANISH)
}
