package p11

// Object classes, key types, certificate types (PKCS#11 v3.1, section 4).
const (
	CKO_DATA        uint = 0
	CKO_CERTIFICATE uint = 1
	CKO_PUBLIC_KEY  uint = 2
	CKO_PRIVATE_KEY uint = 3
	CKO_SECRET_KEY  uint = 4
	CKO_PROFILE     uint = 9

	CKK_EC              uint = 0x03
	CKK_GENERIC_SECRET  uint = 0x10
	CKK_AES             uint = 0x1F
	CKK_SHA256_HMAC     uint = 0x2B
	CKK_SHA384_HMAC     uint = 0x2C
	CKK_SHA512_HMAC     uint = 0x2D
	CKK_SHA224_HMAC     uint = 0x2E
	CKK_CHACHA20        uint = 0x33
	CKK_SHA3_224_HMAC   uint = 0x36
	CKK_SHA3_256_HMAC   uint = 0x37
	CKK_SHA3_384_HMAC   uint = 0x38
	CKK_SHA3_512_HMAC   uint = 0x39
	CKK_EC_EDWARDS      uint = 0x40
	CKK_EC_MONTGOMERY   uint = 0x41
	CKK_HKDF            uint = 0x42
	CKK_SHA512_224_HMAC uint = 0x43
	CKK_SHA512_256_HMAC uint = 0x44

	CKC_X_509 uint = 0

	CKP_BASELINE_PROVIDER uint = 1
	CKP_EXTENDED_PROVIDER uint = 2
)

// Attributes.
const (
	CKA_CLASS                      AttributeType = 0x000
	CKA_TOKEN                      AttributeType = 0x001
	CKA_PRIVATE                    AttributeType = 0x002
	CKA_LABEL                      AttributeType = 0x003
	CKA_UNIQUE_ID                  AttributeType = 0x004
	CKA_APPLICATION                AttributeType = 0x010
	CKA_VALUE                      AttributeType = 0x011
	CKA_OBJECT_ID                  AttributeType = 0x012
	CKA_CERTIFICATE_TYPE           AttributeType = 0x080
	CKA_ISSUER                     AttributeType = 0x081
	CKA_SERIAL_NUMBER              AttributeType = 0x082
	CKA_TRUSTED                    AttributeType = 0x086
	CKA_CERTIFICATE_CATEGORY       AttributeType = 0x087
	CKA_JAVA_MIDP_SECURITY_DOMAIN  AttributeType = 0x088
	CKA_URL                        AttributeType = 0x089
	CKA_HASH_OF_SUBJECT_PUBLIC_KEY AttributeType = 0x08A
	CKA_HASH_OF_ISSUER_PUBLIC_KEY  AttributeType = 0x08B
	CKA_NAME_HASH_ALGORITHM        AttributeType = 0x08C
	CKA_CHECK_VALUE                AttributeType = 0x090
	CKA_KEY_TYPE                   AttributeType = 0x100
	CKA_SUBJECT                    AttributeType = 0x101
	CKA_ID                         AttributeType = 0x102
	CKA_SENSITIVE                  AttributeType = 0x103
	CKA_ENCRYPT                    AttributeType = 0x104
	CKA_DECRYPT                    AttributeType = 0x105
	CKA_WRAP                       AttributeType = 0x106
	CKA_UNWRAP                     AttributeType = 0x107
	CKA_SIGN                       AttributeType = 0x108
	CKA_SIGN_RECOVER               AttributeType = 0x109
	CKA_VERIFY                     AttributeType = 0x10A
	CKA_VERIFY_RECOVER             AttributeType = 0x10B
	CKA_DERIVE                     AttributeType = 0x10C
	CKA_START_DATE                 AttributeType = 0x110
	CKA_END_DATE                   AttributeType = 0x111
	CKA_PUBLIC_KEY_INFO            AttributeType = 0x129
	CKA_VALUE_LEN                  AttributeType = 0x161
	CKA_EXTRACTABLE                AttributeType = 0x162
	CKA_LOCAL                      AttributeType = 0x163
	CKA_NEVER_EXTRACTABLE          AttributeType = 0x164
	CKA_ALWAYS_SENSITIVE           AttributeType = 0x165
	CKA_KEY_GEN_MECHANISM          AttributeType = 0x166
	CKA_MODIFIABLE                 AttributeType = 0x170
	CKA_COPYABLE                   AttributeType = 0x171
	CKA_DESTROYABLE                AttributeType = 0x172
	CKA_EC_PARAMS                  AttributeType = 0x180
	CKA_EC_POINT                   AttributeType = 0x181
	CKA_ALWAYS_AUTHENTICATE        AttributeType = 0x202
	CKA_WRAP_WITH_TRUSTED          AttributeType = 0x210
	CKA_PROFILE_ID                 AttributeType = 0x601
	CKA_ALLOWED_MECHANISMS         AttributeType = 0x40000600
)

// Mechanisms.
const (
	CKM_SHA_1                      MechanismType = 0x220
	CKM_SHA512_224_HMAC            MechanismType = 0x049
	CKM_SHA512_224_HMAC_GENERAL    MechanismType = 0x04A
	CKM_SHA512_256_HMAC            MechanismType = 0x04D
	CKM_SHA512_256_HMAC_GENERAL    MechanismType = 0x04E
	CKM_SHA256_HMAC                MechanismType = 0x251
	CKM_SHA256_HMAC_GENERAL        MechanismType = 0x252
	CKM_SHA224_HMAC                MechanismType = 0x256
	CKM_SHA224_HMAC_GENERAL        MechanismType = 0x257
	CKM_SHA384_HMAC                MechanismType = 0x261
	CKM_SHA384_HMAC_GENERAL        MechanismType = 0x262
	CKM_SHA512_HMAC                MechanismType = 0x271
	CKM_SHA512_HMAC_GENERAL        MechanismType = 0x272
	CKM_SHA3_256_HMAC              MechanismType = 0x2B1
	CKM_SHA3_256_HMAC_GENERAL      MechanismType = 0x2B2
	CKM_SHA3_224_HMAC              MechanismType = 0x2B6
	CKM_SHA3_224_HMAC_GENERAL      MechanismType = 0x2B7
	CKM_SHA3_384_HMAC              MechanismType = 0x2C1
	CKM_SHA3_384_HMAC_GENERAL      MechanismType = 0x2C2
	CKM_SHA3_512_HMAC              MechanismType = 0x2D1
	CKM_SHA3_512_HMAC_GENERAL      MechanismType = 0x2D2
	CKM_GENERIC_SECRET_KEY_GEN     MechanismType = 0x350
	CKM_EC_KEY_PAIR_GEN            MechanismType = 0x1040
	CKM_ECDSA                      MechanismType = 0x1041
	CKM_ECDSA_SHA256               MechanismType = 0x1044
	CKM_ECDSA_SHA384               MechanismType = 0x1045
	CKM_ECDSA_SHA512               MechanismType = 0x1046
	CKM_ECDH1_DERIVE               MechanismType = 0x1050
	CKM_AES_KEY_GEN                MechanismType = 0x1080
	CKM_AES_CBC                    MechanismType = 0x1082
	CKM_AES_CBC_PAD                MechanismType = 0x1085
	CKM_AES_CTR                    MechanismType = 0x1086
	CKM_AES_GCM                    MechanismType = 0x1087
	CKM_CHACHA20_KEY_GEN           MechanismType = 0x1225
	CKM_AES_KEY_WRAP               MechanismType = 0x2109
	CKM_AES_KEY_WRAP_KWP           MechanismType = 0x210B
	CKM_CHACHA20_POLY1305          MechanismType = 0x4021
	CKM_HKDF_DERIVE                MechanismType = 0x402A
	CKM_HKDF_DATA                  MechanismType = 0x402B
	CKM_HKDF_KEY_GEN               MechanismType = 0x402C
	CKM_SHA512_224                 MechanismType = 0x048
	CKM_SHA512_256                 MechanismType = 0x04C
	CKM_SHA256                     MechanismType = 0x250
	CKM_SHA224                     MechanismType = 0x255
	CKM_SHA384                     MechanismType = 0x260
	CKM_SHA512                     MechanismType = 0x270
	CKM_SHA3_256                   MechanismType = 0x2B0
	CKM_SHA3_224                   MechanismType = 0x2B5
	CKM_SHA3_384                   MechanismType = 0x2C0
	CKM_SHA3_512                   MechanismType = 0x2D0
	CKM_EC_EDWARDS_KEY_PAIR_GEN    MechanismType = 0x1055
	CKM_EC_MONTGOMERY_KEY_PAIR_GEN MechanismType = 0x1056
	CKM_EDDSA                      MechanismType = 0x1057
)

// Flags.
const (
	CKF_TOKEN_PRESENT uint = 0x1 // CK_SLOT_INFO
	CKF_REMOVABLE     uint = 0x2
	CKF_HW_SLOT       uint = 0x4

	CKF_RNG                    uint = 0x1 // CK_TOKEN_INFO
	CKF_WRITE_PROTECTED        uint = 0x2
	CKF_LOGIN_REQUIRED         uint = 0x4
	CKF_USER_PIN_INITIALIZED   uint = 0x8
	CKF_RESTORE_KEY_NOT_NEEDED uint = 0x20
	CKF_DUAL_CRYPTO_OPERATIONS uint = 0x200
	CKF_TOKEN_INITIALIZED      uint = 0x400
	CKF_USER_PIN_COUNT_LOW     uint = 0x10000
	CKF_USER_PIN_FINAL_TRY     uint = 0x20000
	CKF_USER_PIN_LOCKED        uint = 0x40000
	CKF_SO_PIN_COUNT_LOW       uint = 0x100000
	CKF_SO_PIN_FINAL_TRY       uint = 0x200000
	CKF_SO_PIN_LOCKED          uint = 0x400000

	CKF_RW_SESSION     uint = 0x2 // CK_SESSION_INFO
	CKF_SERIAL_SESSION uint = 0x4
	CKF_ASYNC_SESSION  uint = 0x8

	CKF_MESSAGE_SIGN      uint = 0x8 // CK_MECHANISM_INFO
	CKF_MESSAGE_VERIFY    uint = 0x10
	CKF_MULTI_MESSAGE     uint = 0x20
	CKF_ENCRYPT           uint = 0x100
	CKF_DECRYPT           uint = 0x200
	CKF_DIGEST            uint = 0x400
	CKF_SIGN              uint = 0x800
	CKF_VERIFY            uint = 0x2000
	CKF_GENERATE          uint = 0x8000
	CKF_GENERATE_KEY_PAIR uint = 0x10000
	CKF_WRAP              uint = 0x20000
	CKF_UNWRAP            uint = 0x40000
	CKF_DERIVE            uint = 0x80000
	CKF_EC_F_P            uint = 0x100000
	CKF_EC_OID            uint = 0x800000
	CKF_EC_UNCOMPRESS     uint = 0x1000000
	CKF_HW                uint = 0x1
	CKF_EC_CURVENAME      uint = 0x4000000

	CKF_LIBRARY_CANT_CREATE_OS_THREADS uint = 0x1 // CK_C_INITIALIZE_ARGS
	CKF_OS_LOCKING_OK                  uint = 0x2

	CKF_DONT_BLOCK uint = 0x1 // C_WaitForSlotEvent

	CKF_FIND_OBJECTS uint = 0x40 // C_SessionCancel, beside the functions of CK_MECHANISM_INFO

	CKS_LAST_VALIDATION_OK uint = 1 // C_GetSessionValidationFlags
)

// Users and session states.
const (
	CKU_SO               UserType = 0
	CKU_USER             UserType = 1
	CKU_CONTEXT_SPECIFIC UserType = 2

	CKS_RO_PUBLIC_SESSION State = 0
	CKS_RO_USER_FUNCTIONS State = 1
	CKS_RW_PUBLIC_SESSION State = 2
	CKS_RW_USER_FUNCTIONS State = 3
	CKS_RW_SO_FUNCTIONS   State = 4
)
