"""Types that are hard to read, as a compiler describes them, and a record as it lays them out.

`python tests/helpers/clang_types.py` makes `OBJECT` out of `SOURCE` again, with clang 19.
"""

from __future__ import annotations

import base64
import subprocess
import tempfile
import zlib
from pathlib import Path

SOURCE = r"""
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 __be16;
typedef u32 __be32;
typedef u64 __be64;
#define tag(text) __attribute__((btf_type_tag(text)))
#define in(name) __attribute__((section(name), used))

enum state { IDLE, RUNNING = 5, DEAD = 0x80000000 };
enum level { LOW = -1, HIGH = 1 };
enum wide { SMALL = 1, LARGE = 0x100000000 };
enum negative { MINUS = -0x100000000, PLUS = 1 };

struct inner {
    u8 kind;
    u64 when;
    enum level level;
};

struct __attribute__((packed)) packed {
    u8 a;
    u64 b;
    u16 c : 3;
    u64 d : 61;
    double e;
    u32 f;
};

struct bits {
    u32 low : 3;
    int sign : 5;
    u32 : 0;
    u64 big : 40;
    enum state state : 8;
    _Bool yes : 1;
    u8 tail;
};

union choice {
    u32 word;
    u8 bytes[4];
    struct {
        u16 lo, hi;
    };
    float real;
};

struct later;

struct everything {
    char name[16];
    unsigned char raw[3];
    signed char small;
    _Bool flag;
    const volatile u32 qualified;
    __be32 address;
    __be16 port;
    __be64 wide_address;
    float single;
    double matrix[2][3];
    int cube[2][3][4];
    char names[4][8];
    void *pointer;
    struct everything *self;
    struct later *later;
    int (*call)(int);
    enum state state;
    enum level levels[2];
    enum wide wide;
    enum negative negative;
    struct inner nested;
    struct inner many[3];
    union choice choice;
    union {
        u64 anonymous_a;
        struct {
            u32 anonymous_b;
            u32 anonymous_c;
        };
    };
    struct packed packed;
    struct bits bits[2];
    unsigned __int128 huge;
    u32 flexible[];
};

const struct everything sample in(".rodata.sample") = {
    .name = "a name", .raw = {1, 2, 255}, .small = -1, .flag = 1, .qualified = 0xfedcba98,
    .address = 0x04030201, .port = 0x0201, .wide_address = 0x0807060504030201,
    .single = 1.5, .matrix = {{1, 2, 3}, {4, 5, 6}},
    .cube = {{{0, 1, 2, 3}, {10, 11, 12, 13}, {20, 21, 22, 23}},
             {{100, 101, 102, 103}, {110, 111, 112, 113}, {120, 121, 122, -123}}},
    .names = {"one", "two", "three", "fourfour"}, .pointer = (void *)0xffff888000000000,
    .state = DEAD, .levels = {HIGH, LOW}, .wide = LARGE, .negative = MINUS,
    .nested = {7, 0x123456789a, LOW}, .many = {{1, 2, HIGH}, {3, 4, LOW}, {5, 6, HIGH}},
    .choice = {.word = 0x3f800000}, .anonymous_b = 8, .anonymous_c = 9,
    .packed = {1, 0x1122334455667788, 5, 0x1edcba9876543210, -2.5, 0xffffffff},
    .bits = {{5, -16, 0xabcdef0123, RUNNING, 1, 200}, {2, 15, 0x1, IDLE, 0, 100}},
    .huge = ((unsigned __int128)1 << 100) + 1,
};

struct bpf_spin_lock { u32 val; };
struct bpf_timer { u64 __opaque[2]; } __attribute__((aligned(8)));
struct locked {
    u32 before;
    struct bpf_spin_lock lock;
    struct bpf_timer timer;
    struct everything tag("kptr") *object;
    struct { u32 count; struct everything tag("uptr") *user; } deep[2];
};
struct locked locked in(".data.locked");

union both { u32 x; };
typedef struct { u64 x; } both;
both one in(".data.both");
union both other in(".data.both");

struct locked *use(struct everything *e, struct later *l) { return &locked; }
"""


def compiled() -> bytes:
    """Return what clang makes of the source, without its debug sections."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "types.c"), Path(folder, "types.o")
        source.write_text(SOURCE)
        subprocess.run(
            ["clang-19", "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-c", source, "-o", target],
            check=True, cwd=folder,
        )  # fmt: skip
        subprocess.run(["llvm-objcopy", "-g", target], check=True)
        return target.read_bytes()


# zlib, base 85.
_PACKED = """
c-pNPZEPIXadz))U*b<l$VZdHg*1?u;51H}rcG(=)Q)5IVj?>sKtY$iyY=1Tz1{PE#5VN9LIfiI5UE0qsz`j~2MC0a
5J(6KDFS}*2Z<jD@dE)u1|g_a_eYEPP>z}RX0vZMKKi45(%j6Ooi{UYX5Q@E`^#wIu&!wk4Gq4AcovW4-k2WZ-)@xL
kdk{mH8=8(Q8(kcrZ=0U|NLtoUe@$XR?{PXCfnBDkpsANP_cS2VG?qT`xvifykSWC4nXQM2&)k~5xNk%NfO~Ygmnn(
5h@7e)-*yD!9j2l8VIup^9TzF_amHXHk+;^HxbOa64yLatan3?fOv~%n@wmv7Rf(U)r?~;2k|<X{`>qLd#_dGA{jlk
Cc`+Z=pfw2^Y)ZHnisLe0K+QcpPidNF|y~zYtEc|>ZLc|`|Llg?h-3H!>hJx|9t29Htp^Ellm%fm43_${C~$2U&Zyc
Hz#3B=E`GTXZxGc?`2KqI*P|N2o%#r&O7b<Ji;d4|C0!Lu9Hg${Rlk>pCAk(^z!C@iHPzsg!BmOqD20ls*ctoJt=*F
A@uDe;_HdV1l)`G2BJG;t&y*bNZ-e{FLlUzyO9$UBKjH0BmDs4n-ESR{UG9-NgnA(5N`*$iF1f{kUY|VLwpO!4P8LA
llWaS7Q4tU(iai$COt?$hj<UscsO39_=4Q@%ZPqK@<_kVDb}QWiPFn(tx?Y3V7V;s>;2?9P}jBdI+`q{^e-ppQ7Tt=
#yVEfmbg}PbgsWm+3t{D=18uGY4Y(prl~GAYTR<z|Ly#24aJIS>KA)hF2@b%u$=ditpd~O{jF2>r}Eb`pKMNP37->j
-N<s;)cT*a(7Q>|yHbAA{{8f7{mN3%w}7lqK0a6YTjTTIy^(3cp;X*X`cCpr?$M-;ikvT6nlSP($+(*ARlb(!9m2P5
%3dCncn$eKugLyci~G(aQs%ED^N<$z!ABMO$26flOK0_QO`dbnXOUjRc_sh0aj$rS^WUEGZHE&73o?Ffw4bNB@6dP#
>06bc4KRK|lYIkHI{Q<(z`bONeo2da=_^e4#WHQQ-&fiHX#5-!3C)tsTZ(V*GEHaXqCAHWQ7wF^#N;E^Nozl0yGPL1
PnnNB@3tjP*7#Y3&spc&Ao~gFq%~i}b~FFbWS!uK+x`{De0$XEYH04?n(WEg3$<_9pZQd*29?^l%;%?%bEe95Depjz
MK|^EC9a7+UB)1Kyr25JF4knJ7B=c}%<@S8iet77>0fib+=BFP_`NZR^ug#|p$jB(II8FwXFmBmh4g_HYGKXQ=U6W&
`J}b?C^}0>|2DoD39+Loowq4EtI~(AeX-1H;(s6w_6+lxx|ZkrdH%7S=SJi6FKTN^kL&MqUNfSs(fE8UDL#M6a$_vF
tP9`7tM)L<<YdiVx!ZgvbqSf@DVM=qCgvZCZi~oRFB_!T#%6^E^R($L1U1X4g1C`-#vJ%{!?t1CHmWci8n!iUnH4Z9
70>j2Xt-Vgb5_MHMjRg(+a}bFz_aF|9F|O>ibO3ZFg@^1dm3zm$TDg61Ej%5)3z^Efn!#Uz&cHYAE2?i;VeM8=2~SF
8b)~rStTp*p%zw6bj+N$N@%fMGdw63hbJe8?<!7>-#uD9e%G<lVi7{ex2ld=$qNaUE*^4S8^S$<u?+f%N=hd32<_en
Awl%muhE9-$-cc15=2jI*Qtsh^vE>=sJJ0{Mf%1^3ZpQ2Vq#)^Vhlz`hezaYp>X?2I5IwV1g4G-7Ya}qo*Wy6qvI1N
rr=lse=NtrAkA1#1?Fm|1L1y{b3NSrLV)q~Ov47-g_;G1<2nm<H}s2!LYEY}3<i{-j8{^O7_OQValkNEVF7gohGoZF
DHhS|-Glpq^viIY)2?TV83a}xy>d(UnPuFiX*QtLm@fJa%PETIr_n9qNV#IsZ5Xp5rpFC26rqni{DFbMoDX1EP;U^-
xM6X&?iss+g@)-5l(8thupH#2`FuaF*v_oDMDzXT&U_?D^_1_ocjO<)du9-NPW~pj_(1+o;2ZS@=Az^VHSC%6m4XyH
GEgxBV?eMa$=e<9TruT!GmQY9rXRj<N4;?^!)E2(LT7VEkKe6B{9aOdvq(Rx^NZrYj7;L{A&0zg$NcF2e_Y(@+fv`4
0Aqq5-)5HC>;b`#-{Lt%AMtak?<e(phT6t*NBo?uey_|)>)KpAC;6SZxbbHB{vAEn6n~?6S7&z*Cd0I4wFv6a@xuc&
xjKWkeY!5%5SFp1F-mkQmB}<?@dQQ*@j_i-*8e|$ll>ui2fZ@>$o~%nE5uVBZOm&=@rP3RPUlV4w<`JGlXAVuZ_qA&
@8we8rU#Y(3Dj{aRX?r1X(yB#QO7YoxsO)<U*BT=IX(9K$JV<m#FWMbUSID_^3(M_(;|KwdXxTl@drRUe!VU1clB@_
;K%KEwy=LE+s`ZZSFK>5?%|n2(@kFe@V?mF`aG+nyh83p{@MR$m34ZmZ_xMwW;O=E
"""
OBJECT = zlib.decompress(base64.b85decode("".join(_PACKED.split())))


if __name__ == "__main__":
    lines = base64.b85encode(zlib.compress(compiled(), 9)).decode()
    text = Path(__file__).read_text()
    head, rest = text.split('_PACKED = """\n', 1)
    tail = rest.split('"""\n', 1)[1]
    packed = "".join(f"{lines[i : i + 90]}\n" for i in range(0, len(lines), 90))
    Path(__file__).write_text(f'{head}_PACKED = """\n{packed}"""\n{tail}')
