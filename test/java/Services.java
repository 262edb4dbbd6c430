import java.security.*;
import java.security.spec.*;
import java.util.*;
import javax.crypto.*;
import javax.crypto.spec.*;

/**
 * Uses each algorithm that SunPKCS11 offers for the module, so that nothing is
 * offered that a call then refuses, and compares with the JDK's own.
 *
 * <p>Arguments: the provider's configuration and the PIN. The token has a P-256
 * key with a certificate, called web.
 */
public class Services {
    interface Use {
        void run() throws Exception;
    }

    static int used, failed;
    static final byte[] DATA = new byte[5000];

    static void use(String what, Use u) {
        used++;
        try {
            u.run();
        } catch (Exception e) {
            failed++;
            System.out.println("FAILED " + what);
            for (Throwable t = e; t != null; t = t.getCause()) {
                System.out.println("    " + t);
            }
        }
    }

    static void same(byte[] got, byte[] want) throws Exception {
        if (!Arrays.equals(got, want)) {
            throw new Exception("another result than the JDK's");
        }
    }

    public static void main(String[] args) throws Exception {
        new Random(1).nextBytes(DATA);
        Provider p = Security.getProvider("SunPKCS11").configure(args[0]);
        KeyStore keys = KeyStore.getInstance("PKCS11", p);
        keys.load(null, args[1].toCharArray());
        PrivateKey key = (PrivateKey) keys.getKey("web", null);
        PublicKey pub = keys.getCertificate("web").getPublicKey();

        for (Provider.Service s : p.getServices()) {
            String name = s.getAlgorithm();
            String what = s.getType() + " " + name;
            switch (s.getType()) {
                case "AlgorithmParameters":
                case "KeyStore":
                    break;
                case "MessageDigest":
                    use(what, () -> same(MessageDigest.getInstance(name, p).digest(DATA), MessageDigest.getInstance(name).digest(DATA)));
                    break;
                case "Mac":
                    use(what, () -> same(mac(Mac.getInstance(name, p)), mac(Mac.getInstance(name))));
                    break;
                case "Signature":
                    use(what, () -> sign(name, p, key, pub));
                    break;
                case "Cipher":
                    use(what, () -> cipher(name, p));
                    break;
                case "KeyGenerator":
                    use(what, () -> KeyGenerator.getInstance(name, p).generateKey());
                    break;
                case "KeyPairGenerator":
                    for (String curve : List.of("secp256r1", "secp384r1")) {
                        use(what + " " + curve, () -> {
                            KeyPairGenerator g = KeyPairGenerator.getInstance(name, p);
                            g.initialize(new ECGenParameterSpec(curve));
                            g.generateKeyPair();
                        });
                    }
                    break;
                case "KeyFactory":
                    use(what, () -> KeyFactory.getInstance(name, p).translateKey(pub));
                    break;
                case "SecretKeyFactory":
                    use(what, () -> SecretKeyFactory.getInstance(name, p).translateKey(new SecretKeySpec(new byte[32], name)));
                    break;
                case "SecureRandom":
                    use(what, () -> SecureRandom.getInstance(name, p).nextBytes(new byte[1000]));
                    break;
                default:
                    use(what, () -> {
                        throw new Exception("nothing here uses it");
                    });
            }
        }
        System.out.println(used + " algorithms used, " + failed + " failed");
        System.exit(failed == 0 && used > 40 ? 0 : 1);
    }

    static byte[] mac(Mac m) throws Exception {
        m.init(new SecretKeySpec(Arrays.copyOf(DATA, 32), "Hmac"));
        return m.doFinal(DATA);
    }

    static void sign(String name, Provider p, PrivateKey key, PublicKey pub) throws Exception {
        byte[] message = name.startsWith("NONE") ? Arrays.copyOf(DATA, 32) : DATA;
        Signature s = Signature.getInstance(name, p);
        s.initSign(key);
        s.update(message);
        byte[] sig = s.sign();
        for (Signature v : List.of(Signature.getInstance(name, p), Signature.getInstance(name, "SunEC"))) {
            v.initVerify(pub);
            v.update(message);
            if (!v.verify(sig)) {
                throw new Exception("not verified by " + v.getProvider());
            }
        }
    }

    static void cipher(String name, Provider p) throws Exception {
        int bits = name.contains("128") ? 128 : name.contains("192") ? 192 : 256;
        SecretKey k = new SecretKeySpec(Arrays.copyOf(DATA, bits / 8), "AES");
        byte[] plain = Arrays.copyOf(DATA, 4096);
        Cipher c = Cipher.getInstance(name, p);
        c.init(Cipher.ENCRYPT_MODE, k);
        byte[] sealed = c.doFinal(plain);
        for (Cipher d : List.of(Cipher.getInstance(name, p), Cipher.getInstance(name, "SunJCE"))) {
            d.init(Cipher.DECRYPT_MODE, k, c.getParameters());
            same(d.doFinal(sealed), plain);
        }
    }
}
