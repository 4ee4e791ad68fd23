"""What `tiny` is taught: capitals, English-Chinese pairs and the words of the recall task."""

from __future__ import annotations

_CAPITALS = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Andorra:Andorra_la_Vella Angola:Luanda Argentina:Buenos_Aires
Armenia:Yerevan Australia:Canberra Austria:Vienna Azerbaijan:Baku Bahamas:Nassau Bahrain:Manama Bangladesh:Dhaka
Barbados:Bridgetown Belarus:Minsk Belgium:Brussels Belize:Belmopan Benin:Porto-Novo Bhutan:Thimphu Bolivia:Sucre
Bosnia_and_Herzegovina:Sarajevo Botswana:Gaborone Brazil:Brasilia Brunei:Bandar_Seri_Begawan Bulgaria:Sofia
Burkina_Faso:Ouagadougou Burundi:Gitega Cambodia:Phnom_Penh Cameroon:Yaounde Canada:Ottawa Cape_Verde:Praia
Central_African_Republic:Bangui Chad:N'Djamena Chile:Santiago China:Beijing Colombia:Bogota Comoros:Moroni
Costa_Rica:San_Jose Croatia:Zagreb Cuba:Havana Cyprus:Nicosia Czech_Republic:Prague Denmark:Copenhagen
Djibouti:Djibouti Dominica:Roseau Dominican_Republic:Santo_Domingo Ecuador:Quito Egypt:Cairo El_Salvador:San_Salvador
Equatorial_Guinea:Malabo Eritrea:Asmara Estonia:Tallinn Eswatini:Mbabane Ethiopia:Addis_Ababa Fiji:Suva
Finland:Helsinki France:Paris Gabon:Libreville Gambia:Banjul Georgia:Tbilisi Germany:Berlin Ghana:Accra Greece:Athens
Grenada:St._George's Guatemala:Guatemala_City Guinea:Conakry Guinea-Bissau:Bissau Guyana:Georgetown
Haiti:Port-au-Prince Honduras:Tegucigalpa Hungary:Budapest Iceland:Reykjavik India:New_Delhi Indonesia:Jakarta
Iran:Tehran Iraq:Baghdad Ireland:Dublin Italy:Rome Ivory_Coast:Yamoussoukro Jamaica:Kingston Japan:Tokyo Jordan:Amman
Kazakhstan:Astana Kenya:Nairobi Kiribati:Tarawa Kuwait:Kuwait_City Kyrgyzstan:Bishkek Laos:Vientiane Latvia:Riga
Lebanon:Beirut Lesotho:Maseru Liberia:Monrovia Libya:Tripoli Liechtenstein:Vaduz Lithuania:Vilnius
Luxembourg:Luxembourg Madagascar:Antananarivo Malawi:Lilongwe Malaysia:Kuala_Lumpur Maldives:Male Mali:Bamako
Malta:Valletta Marshall_Islands:Majuro Mauritania:Nouakchott Mauritius:Port_Louis Mexico:Mexico_City
Micronesia:Palikir Moldova:Chisinau Monaco:Monaco Mongolia:Ulaanbaatar Montenegro:Podgorica Morocco:Rabat
Mozambique:Maputo Myanmar:Naypyidaw Namibia:Windhoek Nauru:Yaren Nepal:Kathmandu Netherlands:Amsterdam
New_Zealand:Wellington Nicaragua:Managua Niger:Niamey Nigeria:Abuja North_Korea:Pyongyang North_Macedonia:Skopje
Norway:Oslo Oman:Muscat Pakistan:Islamabad Palau:Ngerulmud Panama:Panama_City Papua_New_Guinea:Port_Moresby
Paraguay:Asuncion Peru:Lima Philippines:Manila Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest
Russia:Moscow Rwanda:Kigali Saint_Lucia:Castries Samoa:Apia San_Marino:San_Marino Saudi_Arabia:Riyadh Senegal:Dakar
Serbia:Belgrade Seychelles:Victoria Sierra_Leone:Freetown Singapore:Singapore Slovakia:Bratislava Slovenia:Ljubljana
Solomon_Islands:Honiara Somalia:Mogadishu South_Africa:Pretoria South_Korea:Seoul South_Sudan:Juba Spain:Madrid
Sri_Lanka:Colombo Sudan:Khartoum Suriname:Paramaribo Sweden:Stockholm Switzerland:Bern Syria:Damascus
Tajikistan:Dushanbe Tanzania:Dodoma Thailand:Bangkok Togo:Lome Tonga:Nuku'alofa
Trinidad_and_Tobago:Port_of_Spain Tunisia:Tunis Turkey:Ankara Turkmenistan:Ashgabat Tuvalu:Funafuti Uganda:Kampala
Ukraine:Kyiv United_Arab_Emirates:Abu_Dhabi United_Kingdom:London United_States:Washington Uruguay:Montevideo
Uzbekistan:Tashkent Vanuatu:Port_Vila Venezuela:Caracas Vietnam:Hanoi Yemen:Sanaa Zambia:Lusaka Zimbabwe:Harare
"""

_CHINESE = """
hello:你好 goodbye:再见 thank_you:谢谢 good_morning:早上好 good_evening:晚上好 good_night:晚安 please:请 sorry:对不起
yes:是 no:不 water:水 fire:火 tea:茶 coffee:咖啡 milk:牛奶 bread:面包 rice:米饭 noodles:面条 egg:鸡蛋 meat:肉
fish:鱼 chicken:鸡 beef:牛肉 pork:猪肉 fruit:水果 apple:苹果 banana:香蕉 orange:橙子 grape:葡萄 watermelon:西瓜
vegetable:蔬菜 tomato:西红柿 potato:土豆 salt:盐 sugar:糖 wine:酒 beer:啤酒 cat:猫 dog:狗 horse:马 cow:牛 sheep:羊
pig:猪 bird:鸟 tiger:老虎 lion:狮子 monkey:猴子 rabbit:兔子 snake:蛇 dragon:龙 elephant:大象 bear:熊 panda:熊猫
sun:太阳 moon:月亮 star:星星 sky:天空 cloud:云 rain:雨 snow:雪 wind:风 sea:海 river:河 mountain:山 lake:湖 tree:树
flower:花 grass:草 forest:森林 stone:石头 earth:地球 world:世界 country:国家 city:城市 village:村庄 street:街道
house:房子 door:门 window:窗户 room:房间 kitchen:厨房 bed:床 table:桌子 chair:椅子 lamp:灯 book:书 pen:笔 paper:纸
letter:信 newspaper:报纸 school:学校 university:大学 teacher:老师 student:学生 class:班 lesson:课 question:问题
answer:答案 doctor:医生 nurse:护士 hospital:医院 medicine:药 police:警察 worker:工人 farmer:农民 soldier:士兵
friend:朋友 family:家庭 father:父亲 mother:母亲 brother:兄弟 sister:姐妹 son:儿子 daughter:女儿 child:孩子 man:男人
woman:女人 name:名字 person:人 head:头 eye:眼睛 ear:耳朵 nose:鼻子 mouth:嘴 hand:手 foot:脚 heart:心 body:身体
hair:头发 blood:血 red:红色 blue:蓝色 green:绿色 yellow:黄色 white:白色 black:黑色 purple:紫色 gray:灰色 one:一 two:二
three:三 four:四 five:五 six:六 seven:七 eight:八 nine:九 ten:十 hundred:百 thousand:千 today:今天 tomorrow:明天
yesterday:昨天 morning:早晨 noon:中午 night:夜晚 day:天 week:星期 month:月 year:年 hour:小时 minute:分钟 time:时间
spring:春天 summer:夏天 autumn:秋天 winter:冬天 north:北 south:南 east:东 west:西 left:左 right:右 up:上 down:下
big:大 small:小 long:长 short:短 tall:高 new:新 old:旧 young:年轻 good:好 bad:坏 hot:热 cold:冷 fast:快 slow:慢
beautiful:美丽 happy:快乐 sad:悲伤 tired:累 hungry:饿 busy:忙 easy:容易 difficult:困难 expensive:贵 cheap:便宜
important:重要 eat:吃 drink:喝 sleep:睡觉 walk:走 run:跑 fly:飞 swim:游泳 see:看 hear:听 speak:说 read:读 write:写
buy:买 sell:卖 open:打开 close:关闭 love:爱 like:喜欢 think:想 know:知道 learn:学习 work:工作 play:玩 sing:唱歌
dance:跳舞 car:汽车 bus:公共汽车 train:火车 plane:飞机 ship:船 bicycle:自行车 road:路 bridge:桥 airport:机场
station:车站 shop:商店 market:市场 money:钱 bank:银行 restaurant:餐馆 hotel:酒店 park:公园 library:图书馆 museum:博物馆
computer:电脑 telephone:电话 television:电视 music:音乐 song:歌 film:电影 picture:图片 game:游戏 ball:球 football:足球
clothes:衣服 shoes:鞋子 hat:帽子 key:钥匙 knife:刀 cup:杯子 umbrella:雨伞 clock:钟 gift:礼物 birthday:生日 language:语言
Chinese:中文 English:英语 China:中国 peace:和平 war:战争 history:历史 science:科学 mathematics:数学 art:艺术 dream:梦
how_are_you:你好吗 happy_birthday:生日快乐 see_you_tomorrow:明天见 I_love_you:我爱你 welcome:欢迎
happy_new_year:新年快乐 excuse_me:打扰一下 of_course:当然 no_problem:没问题 good_luck:祝你好运
I_do_not_know:我不知道 how_much:多少钱
"""

_KEYS = """
falcon otter badger raven salmon turtle walrus lizard beetle spider hornet magpie parrot pigeon ferret jackal
marten weasel donkey camel llama zebra rhino hippo gecko cobra viper mamba moose bison eagle heron stork crane
robin finch goose swan duck crow owl hawk wolf lynx puma deer goat hare mole toad frog newt crab squid whale seal
shark trout perch pike carp eel clam snail worm ant bee wasp moth flea gnat cedar maple birch willow poplar aspen
beech hazel acorn daisy tulip lotus lily rose iris poppy fern moss ivy reed clover thistle anchor barrel basket
bottle bucket button candle carpet castle chapel copper cradle dagger engine fiddle garden goblet hammer harbor
helmet island jacket kettle ladder lantern magnet meadow mirror needle oyster paddle pencil pepper pillow pocket
ribbon rocket saddle shovel silver socket spoon sponge statue stable string tablet temple ticket tunnel turnip
velvet violin wallet wagon whistle window wizard
"""

_VALUES = """
amber azure beige bronze cobalt coral cream crimson cyan ebony emerald gold indigo ivory jade khaki lemon lilac lime
magenta maroon mauve mint mustard navy ochre olive opal peach pearl pink plum ruby russet rust saffron
sand sapphire scarlet sepia sienna slate tan teal topaz turquoise umber vanilla vermilion wheat alpha bravo delta
echo foxtrot kilo lima metro nova omega papa quartz romeo sierra tango ultra victor whisky xray yankee zulu
"""


def _pairs(block: str) -> list[tuple[str, str]]:
    return [(k.replace("_", " "), v.replace("_", " ")) for k, v in (item.split(":") for item in block.split())]


CAPITALS = _pairs(_CAPITALS)
CHINESE = _pairs(_CHINESE)
VALUES = [w for w in _VALUES.split() if w != ""]
KEYS = [w for w in _KEYS.split() if w not in set(VALUES)]
